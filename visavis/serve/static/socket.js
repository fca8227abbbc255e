// The media WebSocket: JPEG and PCM in, drawn and played on the sound's clock; PCM out.
const JPEG = 1, PCM = 2;
const AHEAD = 0.12; // seconds of sound held against jitter

// Bytes with the byte before them that says what they are.
export function marked(kind, bytes) {
  const out = new Uint8Array(1 + bytes.length);
  out[0] = kind;
  out.set(bytes, 1);
  return out;
}

export class SocketMedia {
  constructor(canvas) {
    this.canvas = canvas;
    this.epoch = 0;
    this.sources = new Set();
    this.frames = [];
    this.shown = [];
    this.start = null; // context time of sample 0
  }

  open(id, ticket) {
    this.prepare();
    const base = location.origin.replace(/^http/, "ws");
    this.socket = new WebSocket(`${base}/sessions/${id}/media`, ["visavis.v1", `ticket.${ticket}`]);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = (event) => this.heard(event.data);
    return new Promise((yes, no) => {
      this.socket.onopen = () => yes();
      this.socket.onerror = () => no(new Error("the media socket cannot be opened"));
    });
  }

  // On the socket of the whole talk, which hands its binary messages to `heard`.
  share(socket) {
    this.prepare();
    this.socket = socket;
    this.shared = true;
    socket.send(JSON.stringify({ type: "media", rate: this.context.sampleRate }));
  }

  prepare() {
    this.context = new AudioContext();
    this.gain = this.context.createGain();
    this.gain.connect(this.context.destination);
    this.draw = this.draw.bind(this);
    requestAnimationFrame(this.draw);
  }

  async heard(data) {
    if (this.closed) return;
    const head = new DataView(data, 0, 16);
    const [kind, epoch, rate, pts] = [head.getUint8(0), head.getUint16(2, true), head.getUint32(4, true), Number(head.getBigUint64(8, true))];
    if (kind === PCM) this.play(new Int16Array(data, 16), rate, pts, epoch);
    if (kind === JPEG) {
      const image = await createImageBitmap(new Blob([new Uint8Array(data, 16)], { type: "image/jpeg" }));
      this.frames.push({ image, at: (pts * 1000) / rate, epoch });
      while (this.frames.length > 30) this.frames.shift().image.close();
    }
  }

  play(samples, rate, pts, epoch) {
    const now = this.context.currentTime;
    const late = this.start === null || this.start + pts / rate < now;
    if (late) this.start = now + AHEAD - pts / rate;
    if (epoch < this.epoch) return;
    const buffer = this.context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(Float32Array.from(samples, (s) => s / 32768), 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.gain);
    source.start(this.start + pts / rate);
    this.sources.add(source);
    source.onended = () => this.sources.delete(source);
  }

  draw() {
    if (this.closed) return;
    requestAnimationFrame(this.draw);
    if (this.start === null) return;
    const time = this.context.currentTime - (this.context.outputLatency || 0) - this.start;
    let latest = null;
    while (this.frames.length && this.frames[0].at <= time) {
      latest?.image.close();
      latest = this.frames.shift();
    }
    if (!latest) return;
    const { canvas } = this;
    if (canvas.width !== latest.image.width) canvas.width = canvas.height = latest.image.width;
    canvas.getContext("2d").drawImage(latest.image, 0, 0);
    latest.image.close();
    this.shown.push(performance.now());
    while (this.shown.length > 61) this.shown.shift();
    this.offset = (latest.at - time) * 1000;
  }

  interrupt(epoch) {
    if (epoch !== undefined) this.epoch = epoch & 0xffff;
    for (const source of this.sources) source.stop();
    this.sources.clear();
  }

  async microphone(stream, mode) {
    this.worklet?.disconnect();
    this.worklet = null;
    if (!stream) return;
    await this.context.audioWorklet.addModule("/static/worklet.js");
    if (!this.shared) { // there the talk itself has said where the microphone goes
      this.socket.send(JSON.stringify({ rate: this.context.sampleRate, mode: mode === "speak" ? "mic" : mode }));
    }
    this.worklet = new AudioWorkletNode(this.context, "pcm");
    this.worklet.port.onmessage = (event) => {
      if (this.socket.readyState !== WebSocket.OPEN || this.socket.bufferedAmount > 1e6) return;
      this.socket.send(this.shared ? marked(PCM, new Uint8Array(event.data)) : event.data);
    };
    this.context.createMediaStreamSource(stream).connect(this.worklet);
  }

  mute(on) {
    this.gain.gain.value = on ? 0 : 1;
  }

  figures() {
    const { shown } = this;
    if (shown.length < 2) return null;
    const recent = shown.filter((t) => t > performance.now() - 1500);
    const fps = recent.length > 1 ? ((recent.length - 1) * 1000) / (recent.at(-1) - recent[0]) : 0;
    return { fps, network_ms: 1000 * AHEAD, offset_ms: this.offset };
  }

  close() {
    this.closed = true;
    if (!this.shared) this.socket.close();
    this.interrupt();
    this.context.close();
  }
}
