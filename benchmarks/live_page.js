// What the page is asked to note for live_browser.py: every frame shown, every edge heard, statistics.
() => {
  const box = (window.noted = { frames: [], shown: [], edges: [], stats: [], unmutes: [] });
  const video = document.querySelector("#video");

  // --- picture: every decoded frame in a worker (the page's own thread is told of some only): when,
  // its timestamp, how bright the coded corner is, how red the mouth. From the page: when it was shown.
  const onlooker = `
    onmessage = async ({ data: { frames, origin } }) => {
      const even = (v, frame) => 2 * Math.round((v * frame.displayWidth) / 1024);
      const plane = async (frame, x, y, w, h, chroma) => {
        const rect = { x: even(x, frame), y: even(y, frame), width: even(w, frame), height: even(h, frame) };
        const data = new Uint8Array(frame.allocationSize({ rect }));
        const layout = (await frame.copyTo(data, { rect }))[chroma ? 2 : 0];
        const [rows, columns] = chroma ? [rect.height / 2, rect.width / 2] : [rect.height, rect.width];
        let sum = 0;
        for (let j = 0; j < rows; j++)
          for (let i = 0; i < columns; i++) sum += data[layout.offset + j * layout.stride + i];
        return sum / rows / columns;
      };
      const reader = frames.getReader();
      for (;;) {
        const { done, value: frame } = await reader.read();
        if (done) return;
        const row = [performance.timeOrigin + performance.now(), frame.metadata?.().rtpTimestamp ?? -1, frame.timestamp];
        row.push(await plane(frame, 12, 12, 16, 8, false), await plane(frame, 242, 268, 54, 30, true));
        frame.close();
        postMessage(row);
      }
    };`;
  const worker = new Worker(URL.createObjectURL(new Blob([onlooker], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => box.frames.push(data);
  const { readable } = new MediaStreamTrackProcessor({ track: video.srcObject.getVideoTracks()[0], maxBufferSize: 30 });
  worker.postMessage({ frames: readable }, [readable]);
  const onFrame = (now, meta) => {
    video.requestVideoFrameCallback(onFrame);
    box.shown.push([performance.timeOrigin + meta.expectedDisplayTime, performance.timeOrigin + now, meta.rtpTimestamp, meta.presentedFrames]);
  };
  video.requestVideoFrameCallback(onFrame);

  // --- sound: edges in what the tracks deliver, told apart by filters. An AudioContext would lose time
  // where the machine is busy; a track's own blocks are stamped.
  const listener = `
    const biquad = (b0, b1, b2, a1, a2) => {
      let x1 = 0, x2 = 0, y1 = 0, y2 = 0;
      return (x) => {
        const y = b0 * x + b1 * x1 + b2 * x2 - a1 * y1 - a2 * y2;
        x2 = x1; x1 = x; y2 = y1; y1 = y;
        return y;
      };
    };
    const band = (kind, hz, rate) => {
      const w = (2 * Math.PI * hz) / rate, cos = Math.cos(w), alpha = Math.sin(w) / Math.SQRT2, a0 = 1 + alpha;
      const side = kind === "low" ? 1 - cos : 1 + cos, middle = kind === "low" ? 1 - cos : -1 - cos;
      const make = () => biquad(side / 2 / a0, middle / a0, side / 2 / a0, (-2 * cos) / a0, (1 - alpha) / a0);
      const [one, two] = [make(), make()];
      return (x) => two(one(x));
    };
    onmessage = async ({ data: { blocks, wanted } }) => {
      const reader = blocks.getReader();
      const states = wanted.map((w) => ({ ...w, on: false, quiet: 0, pass: null }));
      for (;;) {
        const { done, value: block } = await reader.read();
        if (done) return;
        const now = performance.timeOrigin + performance.now(), rate = block.sampleRate, start = block.timestamp / 1000;
        const pcm = new Float32Array(block.numberOfFrames);
        block.copyTo(pcm, { planeIndex: 0, format: "f32-planar" });
        block.close();
        for (const s of states) {
          s.pass ??= band(s.kind, s.hz, rate);
          for (let i = 0; i < pcm.length; i++) {
            const level = Math.abs(s.pass(pcm[i])), at = start + (1000 * i) / rate;
            s.quiet = level < s.down ? s.quiet + 1 : 0;
            if (!s.on && level > s.up) { s.on = true; postMessage([s.name, 1, at, start, now]); }
            if (s.on && s.quiet > s.hold) { s.on = false; postMessage([s.name, 0, at - (1000 * s.hold) / rate, start, now]); }
          }
        }
        postMessage(["clock", 2, 0, start, now]);
      }
    };`;
  const ears = URL.createObjectURL(new Blob([listener], { type: "text/javascript" }));
  const listen = (track, wanted, name) => {
    const worker = new Worker(ears);
    let count = 0;
    worker.onmessage = ({ data }) => {
      if (data[0] !== "clock") box.edges.push(data);
      else if (count++ % 20 === 0) box.edges.push([name, ...data.slice(1)]);
    };
    const { readable } = new MediaStreamTrackProcessor({ track, maxBufferSize: 100 });
    worker.postMessage({ blocks: readable, wanted }, [readable]);
  };
  const voice = { kind: "low", hz: 3000, up: 0.05, down: 0.02, hold: 9600 };
  if (window.mic) listen(window.mic.getAudioTracks()[0].clone(), [{ ...voice, name: "mic" }], "mic");
  const beep = { kind: "high", hz: 6500, up: 0.04, down: 0.01, hold: 2400, name: "beep" };
  listen(video.srcObject.getAudioTracks()[0], [{ ...voice, name: "voice" }, beep], "out");

  // --- the browser's own account
  setInterval(async () => {
    const row = { at: Date.now() };
    for (const r of (await window.pc.getStats()).values()) {
      if (r.type === "inbound-rtp") row[r.kind] = r;
      if (r.type === "media-playout") row.playout = r;
    }
    box.stats.push(row);
  }, 500);
}
