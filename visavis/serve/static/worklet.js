// Microphone to 20 ms pieces of 16-bit PCM.
class Pcm extends AudioWorkletProcessor {
  constructor() {
    super();
    this.held = [];
    this.count = 0;
  }

  process(inputs) {
    const channel = inputs[0][0];
    if (channel) {
      this.held.push(Int16Array.from(channel, (s) => Math.max(-1, Math.min(1, s)) * 32767));
      this.count += channel.length;
    }
    if (this.count >= sampleRate / 50) {
      const out = new Int16Array(this.count);
      let at = 0;
      for (const piece of this.held) { out.set(piece, at); at += piece.length; }
      this.port.postMessage(out.buffer, [out.buffer]);
      this.held = [];
      this.count = 0;
    }
    return true;
  }
}
registerProcessor("pcm", Pcm);
