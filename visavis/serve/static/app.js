// The page: one conversation with one face. WebRTC first; the media WebSocket where UDP is blocked.
import { SocketMedia, marked } from "/static/socket.js";
import { Graph } from "/static/graph.js";

const $ = (id) => document.getElementById(id);
const WEBRTC_PATIENCE = 8000; // ms without a connection before the WebSocket is tried
const FULL = 4503; // how /talk is closed where no place is free
const TRIES = 4; // another replica may have one
const PIECE = 3; // first byte of a binary message with a piece of a file
const PIECE_BYTES = 64 * 1024;
let token = sessionStorage.getItem("visavis-token") || "";
let config = {};
let face = "";
let call = null; // the conversation that is on
const graph = new Graph($("graph"));
const mine = JSON.parse(localStorage.getItem("visavis-faces") || "[]");

// --- server ------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  if (options.json) {
    headers.set("Content-Type", "application/json");
    options.body = JSON.stringify(options.json);
  }
  const answer = await fetch(path, { ...options, headers });
  if (!answer.ok) {
    let detail = answer.statusText;
    try { detail = (await answer.json()).detail; } catch { /* not JSON */ }
    throw new Error(typeof detail === "string" ? detail : "the request was refused");
  }
  return answer;
}

function complain(error) {
  $("alert").textContent = error.message || String(error);
  $("alert").hidden = false;
  clearTimeout(complain.timer);
  complain.timer = setTimeout(() => { $("alert").hidden = true; }, 6000);
}

const guarded = (work) => async (...args) => {
  try { return await work(...args); } catch (error) { complain(error); }
};

function status(text, state) {
  $("status").textContent = text;
  $("status").dataset.state = state;
}

// --- faces -------------------------------------------------------------------------------------

async function picture(id) {
  const answer = await ask(`/avatars/${encodeURIComponent(id)}/image`);
  return URL.createObjectURL(await answer.blob());
}

async function showFaces() {
  const shared = await (await ask("/avatars")).json();
  const box = $("faces");
  box.replaceChildren();
  for (const entry of [...shared, ...mine]) {
    let url;
    try { url = await picture(entry.id); } catch { continue; } // an upload the server forgot
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("role", "radio");
    button.dataset.id = entry.id;
    button.dataset.url = url;
    const image = new Image();
    image.src = url;
    image.alt = "";
    button.append(image, entry.name);
    button.onclick = guarded(() => choose(entry.id));
    button.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const all = [...box.children];
      const next = all[(all.indexOf(button) + step + all.length) % all.length];
      next.focus();
      next.click();
    };
    box.append(button);
  }
  if (box.firstChild) await choose(face || box.firstChild.dataset.id);
}

async function choose(id) {
  face = id;
  for (const button of $("faces").children) {
    const on = button.dataset.id === id;
    button.setAttribute("aria-checked", String(on));
    button.tabIndex = on ? 0 : -1;
    if (on) $("poster").src = button.dataset.url;
  }
  if (call) call.send({ type: "avatar", id });
}

$("make").onsubmit = guarded(async (event) => {
  event.preventDefault();
  const button = event.submitter;
  button.disabled = true;
  button.textContent = "Looking at the photo…";
  try {
    const body = new FormData();
    const file = $("photo").files[0];
    body.append("file", file);
    body.append("name", file.name.replace(/\.[^.]*$/, ""));
    body.append("consent", String($("consent").checked));
    const entry = await (await ask("/avatars", { method: "POST", body })).json();
    mine.push({ id: entry.id, name: entry.name });
    localStorage.setItem("visavis-faces", JSON.stringify(mine.slice(-12)));
    face = entry.id;
    await showFaces();
    event.target.reset();
  } finally {
    button.disabled = false;
    button.textContent = "Make the face";
  }
});

// --- a conversation ----------------------------------------------------------------------------

class Call {
  async open() {
    if (config.one_socket) await this.talk();
    else await this.place();
    this.control.onmessage = ({ data }) => {
      if (typeof data === "string") this.heard(JSON.parse(data));
      else this.media?.heard(data);
    };
    this.control.onclose = () => this.close("The conversation ended");
    try {
      if (new URLSearchParams(location.search).has("socket")) throw new Error("asked for");
      await this.webrtc();
    } catch {
      this.pc?.close();
      this.pc = null;
      await this.socket();
    }
    this.timer = setInterval(() => this.measure(), 500);
  }

  async place() {
    this.session = await (await ask("/sessions", { method: "POST", json: { avatar: face } })).json();
    const base = location.origin.replace(/^http/, "ws");
    const { id, tickets } = this.session;
    this.control = new WebSocket(`${base}/sessions/${id}/control`, ["visavis.v1", `ticket.${tickets.control}`]);
    await new Promise((yes, no) => {
      this.control.onopen = yes;
      this.control.onerror = () => no(new Error("the server cannot be reached"));
    });
  }

  // All on one socket: a request of its own might reach a replica that knows nothing of this talk.
  async talk() {
    const address = `${location.origin.replace(/^http/, "ws")}/talk`;
    for (let left = TRIES; !this.session; left--) {
      const socket = (this.control = new WebSocket(address, ["visavis.v1"]));
      socket.binaryType = "arraybuffer";
      socket.onopen = () => this.send({ type: "open", avatar: face, token });
      const closed = await new Promise((resolve) => {
        socket.onmessage = (event) => { this.session = JSON.parse(event.data); resolve(null); };
        socket.onclose = resolve;
      });
      if (!closed) return;
      if (closed.code !== FULL || left <= 1) throw new Error(closed.reason || "the server cannot be reached");
      await new Promise((resolve) => { setTimeout(resolve, 200); });
    }
  }

  async file(file) {
    if (!config.one_socket) {
      const body = new FormData();
      body.append("file", file);
      const path = `/sessions/${this.session.id}/audio`;
      return (await (await ask(path, { method: "POST", body })).json()).seconds;
    }
    if (file.size > config.upload_mb * 2 ** 20) throw new Error(`at most ${config.upload_mb} MB are taken`);
    this.send({ type: "file", bytes: file.size });
    for (let at = 0; at < file.size; at += PIECE_BYTES) {
      const piece = new Uint8Array(await file.slice(at, at + PIECE_BYTES).arrayBuffer());
      while (this.control.bufferedAmount > 4 * PIECE_BYTES) { // words must not wait behind a file
        await new Promise((resolve) => { setTimeout(resolve, 10); });
        if (this.closed) throw new Error("the conversation ended");
      }
      this.control.send(marked(PIECE, piece));
    }
    const said = new Promise((yes, no) => { this.said = { yes, no }; });
    this.send({ type: "file_end" });
    try { return await said; } finally { this.said = null; }
  }

  async webrtc() {
    const pc = (this.pc = new RTCPeerConnection({ iceServers: this.session.ice_servers }));
    this.audio = pc.addTransceiver("audio", { direction: "sendrecv" });
    const video = pc.addTransceiver("video", { direction: "recvonly" });
    this.receivers = [video.receiver, this.audio.receiver];
    const stream = new MediaStream();
    pc.ontrack = (event) => {
      stream.addTrack(event.track);
      event.receiver.jitterBufferTarget = 0; // hold back no more than the network makes needful
      $("video").srcObject = stream;
    };
    pc.onicecandidate = (event) => this.send({ type: "candidate", candidate: event.candidate?.toJSON() ?? {} });
    await pc.setLocalDescription(await pc.createOffer());
    const answer = new Promise((resolve) => { this.answered = resolve; });
    this.send({ type: "offer", sdp: pc.localDescription.sdp });
    // ask ourselves for microphone packets of 10 ms, not 20: it is said that much sooner
    const sdp = (await answer).replace(/(m=audio[^]*?\r\n)(a=rtcp-mux)/, "$1a=ptime:10\r\n$2");
    await pc.setRemoteDescription({ type: "answer", sdp });
    await new Promise((yes, no) => {
      const timer = setTimeout(() => no(new Error("no connection")), WEBRTC_PATIENCE);
      const look = () => {
        if (pc.connectionState === "connected") { clearTimeout(timer); yes(); }
        if (pc.connectionState === "failed") { clearTimeout(timer); no(new Error("failed")); }
      };
      pc.onconnectionstatechange = look;
      look();
    });
    pc.onconnectionstatechange = () => {
      if (pc.connectionState === "failed") this.close("The connection was lost");
    };
    this.show($("video"));
  }

  async socket() {
    const { id } = this.session;
    this.media = new SocketMedia($("canvas"));
    if (config.one_socket) {
      this.media.share(this.control);
    } else {
      const tickets = await (await ask(`/sessions/${id}/tickets`, { method: "POST" })).json();
      await this.media.open(id, tickets.media);
    }
    this.show($("canvas"));
  }

  show(element) {
    element.hidden = false;
    $("poster").style.opacity = 0;
  }

  send(message) {
    if (this.control.readyState === WebSocket.OPEN) this.control.send(JSON.stringify(message));
  }

  heard(message) {
    if (message.type === "answer") this.answered?.(message.sdp);
    if (message.type === "stats") this.stats = message;
    if (message.type === "cleared") this.media?.interrupt(message.epoch);
    if (message.type === "said") this.said?.yes(message.seconds);
    if (message.type === "error") {
      const error = new Error(message.reason);
      if (this.said) this.said.no(error);
      else complain(error);
    }
    if (message.type === "closed") this.close(message.reason || "The conversation ended");
  }

  // What the browser's own buffer still holds must not be heard: silent at once, until the old
  // sound has surely passed.
  interrupt() {
    this.media?.interrupt();
    this.send({ type: "clear" });
    $("video").muted = true;
    clearTimeout(this.hush);
    const wait = Math.max(260, 100 + 1.5 * (this.buffered ?? 150)); // new speech takes as long to come
    this.hush = setTimeout(() => { $("video").muted = Boolean(this.muted); }, wait);
  }

  async microphone(on, mode) {
    if (on && !this.mic) {
      if (!navigator.mediaDevices) throw new Error("the microphone needs https or localhost");
      const sound = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
      this.mic = await navigator.mediaDevices.getUserMedia({ audio: sound });
    }
    if (!on && this.mic) {
      this.mic.getTracks().forEach((track) => track.stop());
      this.mic = null;
    }
    this.send({ type: "mic", mode: on ? mode : "off" });
    if (this.pc) await this.audio.sender.replaceTrack(this.mic?.getAudioTracks()[0] ?? null);
    else await this.media.microphone(this.mic, mode);
    if (!on) this.send({ type: "end_of_speech" });
  }

  mute(on) {
    this.muted = on;
    $("video").muted = on;
    this.media?.mute(on);
  }

  async measure() {
    const live = this.pc ? await this.rtcFigures() : this.media?.figures();
    if (!live || !this.stats?.latency_ms) return;
    const latency = this.stats.latency_ms + live.network_ms;
    const offset = live.offset_ms ?? this.stats.av_offset_ms;
    graph.add(live.fps, latency, offset);
    const unit = (value, name) => { const s = document.createElement("small"); s.textContent = name; return [value, s]; };
    $("fps").replaceChildren(...unit(live.fps.toFixed(1), ""));
    $("latency").replaceChildren(...unit(`${Math.round(latency)} `, "ms"));
    $("offset").replaceChildren(...unit(`${offset > 0 ? "+" : ""}${Math.round(offset)} `, "ms"));
    const s = this.stats;
    $("detail").textContent = `${this.pc ? "WebRTC" : "WebSocket"}, quality ${s.tier} ${s.size}, ${s.dropped} of ${s.rendered + s.dropped} frames dropped, ${s.speaking ? "speaking" : "idle"}`;
  }

  async rtcFigures() {
    const seen = {};
    let trip = 0;
    for (const report of (await this.pc.getStats()).values()) {
      if (report.type === "inbound-rtp") seen[report.kind] = report;
      if (report.type === "candidate-pair" && report.nominated) trip = report.currentRoundTripTime || 0;
    }
    const { video, audio } = seen;
    if (!video) return null;
    if (audio?.jitterBufferEmittedCount) {
      const sound = { held: audio.jitterBufferDelay, out: audio.jitterBufferEmittedCount };
      const before = this.sound ?? { held: 0, out: 0 };
      this.buffered = Math.min(500, (1000 * (sound.held - before.held)) / Math.max(1, sound.out - before.out) + 1000 * trip);
      this.sound = sound;
    }
    const last = this.last;
    this.last = { frames: video.framesDecoded || 0, at: video.timestamp, held: video.jitterBufferDelay || 0, out: video.jitterBufferEmittedCount || 0 };
    if (!last || this.last.at <= last.at) return null;
    const fps = ((this.last.frames - last.frames) * 1000) / (this.last.at - last.at);
    const held = (1000 * (this.last.held - last.held)) / Math.max(1, this.last.out - last.out);
    const [a, v] = [audio?.estimatedPlayoutTimestamp, video.estimatedPlayoutTimestamp];
    if (!a || !v) return { fps, network_ms: 500 * trip + held };
    this.align(a - v, audio, video);
    return { fps, network_ms: 500 * trip + held, offset_ms: a - v };
  }

  // Browsers leave sound and picture up to 30 ms apart. Both are asked to wait for what the slower needs
  // by its network alone (what they wait in fact contains our own wish), and what is left is trimmed.
  align(offset, audio, video) {
    const now = [audio, video].map((r) => ({ least: r.jitterBufferMinimumDelay ?? 0, out: r.jitterBufferEmittedCount ?? 0 }));
    const before = this.least ?? now;
    this.least = now;
    const needs = now.map((n, i) => (1000 * (n.least - before[i].least)) / Math.max(1, n.out - before[i].out));
    const need = Math.min(200, Math.max(...needs));
    this.need = (this.need ?? need) + (need > this.need ? 0.3 : 0.1) * (need - (this.need ?? need));
    if (Math.abs(offset) < 300) this.trim = Math.max(-40, Math.min(40, 0.995 * (this.trim ?? 0) + 0.05 * offset));
    const [picture, sound] = this.receivers;
    const aim = (receiver, value) => {
      const target = 5 * Math.round(value / 5);
      if (receiver.jitterBufferTarget !== target) receiver.jitterBufferTarget = target;
    };
    aim(sound, this.need + Math.max(0, this.trim));
    aim(picture, this.need + Math.max(0, -this.trim));
  }

  close(why) {
    if (this.closed) return;
    this.closed = true;
    this.said?.no(new Error("the conversation ended"));
    clearInterval(this.timer);
    if (config.one_socket) {
      // the server hangs up: Ray's proxy loses count of sockets that go while something is sent to them
      this.send({ type: "end" });
      setTimeout(() => this.control.close(), 2000);
    } else {
      this.control.close();
    }
    this.pc?.close();
    this.media?.close();
    this.mic?.getTracks().forEach((track) => track.stop());
    if (call === this) hangUp(why);
  }
}

function controls(on) {
  for (const id of ["mic", "interrupt", "mute", "end", "sound"]) $(id).disabled = !on;
  $("say").querySelector("button").disabled = !on;
  $("start").hidden = on;
}

function hangUp(why) {
  call = null;
  controls(false);
  for (const id of ["mic", "mute"]) $(id).setAttribute("aria-pressed", "false");
  $("video").hidden = $("canvas").hidden = true;
  $("video").srcObject = null;
  $("poster").style.opacity = 1;
  status(why, "idle");
  $("start").disabled = false;
}

$("start").onclick = guarded(async () => {
  $("start").disabled = true;
  status("Connecting…", "busy");
  const fresh = new Call();
  try {
    await fresh.open();
    call = fresh;
    controls(true);
    status("Live", "live");
    $("interrupt").focus();
  } catch (error) {
    fresh.closed = true;
    fresh.control?.close();
    status("Not connected", "bad");
    $("start").disabled = false;
    throw error;
  }
});
$("end").onclick = () => call?.close("The conversation ended");
$("interrupt").onclick = () => call?.interrupt();
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && call && !$("token-dialog").open) call.interrupt();
});

const mode = () => document.querySelector("input[name=mode]:checked").value;
$("mic").onclick = guarded(async () => {
  const on = $("mic").getAttribute("aria-pressed") !== "true";
  await call.microphone(on, mode());
  $("mic").setAttribute("aria-pressed", String(on));
});
for (const input of document.querySelectorAll("input[name=mode]")) {
  input.onchange = guarded(async () => {
    if ($("mic").getAttribute("aria-pressed") === "true") await call.microphone(true, mode());
  });
}
$("mute").onclick = () => {
  const on = $("mute").getAttribute("aria-pressed") !== "true";
  call.mute(on);
  $("mute").setAttribute("aria-pressed", String(on));
};

const play = guarded(async (file) => {
  if (!file || !call) return;
  const seconds = await call.file(file);
  status(`Speaking ${file.name} (${Math.round(seconds)} s)`, "live");
});
$("sound").onchange = async (event) => {
  await play(event.target.files[0]);
  event.target.value = "";
};
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") play(event.dataTransfer.files[0]);
  });
}
$("say").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text && call) call.send({ type: "say", text });
  $("text").value = "";
};
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("say").requestSubmit(); }
};
addEventListener("pagehide", () => call?.close("Left"));

// --- begin -------------------------------------------------------------------------------------

async function begin() {
  config = await (await fetch("/config")).json();
  $("say-card").hidden = !config.tts;
  $("make").parentElement.hidden = Boolean(config.one_socket); // a photo would be known to one replica only
  if (config.needs_token && !token) {
    $("token-dialog").showModal();
    await new Promise((resolve) => { $("token-dialog").onclose = resolve; });
    token = $("token").value;
  }
  try {
    await showFaces();
    if (token) sessionStorage.setItem("visavis-token", token);
  } catch (error) {
    if (!config.needs_token) throw error;
    sessionStorage.removeItem("visavis-token");
    token = "";
    complain(error);
    await begin();
  }
  document.body.dataset.ready = "yes";
}
guarded(begin)();
