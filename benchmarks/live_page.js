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

  // --- sound: edges of three signals on one audio clock
  const code = `
    class Edge extends AudioWorkletProcessor {
      constructor(options) { super(); Object.assign(this, options.processorOptions); this.on = false; this.quiet = 0; }
      process(inputs) {
        const pcm = inputs[0][0];
        if (!pcm) return true;
        for (let i = 0; i < pcm.length; i++) {
          const level = Math.abs(pcm[i]);
          if (!this.on && level > this.up) {
            this.on = true;
            this.port.postMessage([1, currentTime + i / sampleRate, currentTime, Date.now()]);
          }
          this.quiet = level < this.down ? this.quiet + 1 : 0;
          if (this.on && this.quiet > this.hold) {
            this.on = false;
            this.port.postMessage([0, currentTime + (i - this.hold) / sampleRate, currentTime, Date.now()]);
          }
        }
        return true;
      }
    }
    registerProcessor("edge", Edge);`;
  const context = (window.ears = new AudioContext({ latencyHint: "interactive" }));
  const watch = (name, stream, filter, options) => {
    const node = new AudioWorkletNode(context, "edge", { processorOptions: options });
    const band = new BiquadFilterNode(context, filter);
    const again = new BiquadFilterNode(context, filter);
    context.createMediaStreamSource(stream).connect(band).connect(again).connect(node);
    node.port.onmessage = ({ data }) => box.edges.push([name, ...data]);
    node.connect(new GainNode(context, { gain: 0 })).connect(context.destination);
  };
  const low = { type: "lowpass", frequency: 3000 }, high = { type: "highpass", frequency: 6500 };
  const voice = { up: 0.05, down: 0.02, hold: 9600 };
  context.audioWorklet.addModule(URL.createObjectURL(new Blob([code], { type: "text/javascript" }))).then(() => {
    const out = video.srcObject;
    if (window.mic) watch("mic", window.mic, low, voice);
    watch("voice", out, low, voice);
    watch("beep", out, high, { up: 0.04, down: 0.01, hold: 4800 });
  });

  // --- the browser's own account
  setInterval(async () => {
    const row = { at: Date.now(), output: context.outputLatency, base: context.baseLatency };
    for (const r of (await window.pc.getStats()).values()) {
      if (r.type === "inbound-rtp") row[r.kind] = r;
      if (r.type === "media-playout") row.playout = r;
    }
    box.stats.push(row);
  }, 500);
}
