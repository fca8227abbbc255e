// Three lines over the last minute, each on its own scale, colours from the style sheet.
const POINTS = 120;

export class Graph {
  constructor(canvas) {
    this.canvas = canvas;
    this.rows = [];
  }

  add(fps, latency, offset) {
    this.rows.push([fps / 40, latency / 500, 0.5 + offset / 200]);
    if (this.rows.length > POINTS) this.rows.shift();
    this.draw();
  }

  draw() {
    const { canvas, rows } = this;
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.lineWidth = 1;
    for (const share of [0.25, 0.5, 0.75]) {
      pen.beginPath();
      pen.moveTo(0, canvas.height * share);
      pen.lineTo(canvas.width, canvas.height * share);
      pen.stroke();
    }
    ["--teal", "--blue", "--amber"].forEach((name, line) => {
      pen.strokeStyle = style.getPropertyValue(name);
      pen.lineWidth = 3;
      pen.lineJoin = "round";
      pen.beginPath();
      rows.forEach((row, i) => {
        const x = canvas.width - ((rows.length - 1 - i) * canvas.width) / (POINTS - 1);
        const y = canvas.height * (1 - Math.min(0.97, Math.max(0.03, row[line])));
        if (i) pen.lineTo(x, y); else pen.moveTo(x, y);
      });
      pen.stroke();
    });
  }
}
