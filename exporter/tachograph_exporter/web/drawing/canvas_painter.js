// Draws on a canvas.

export const FONT_FAMILY = 'system-ui, "DejaVu Sans", sans-serif';

function font(size, bold = false) {
  return `${bold ? "600 " : ""}${size}px ${FONT_FAMILY}`;
}

/** Draws in CSS pixels, at the screen's resolution. */
export class CanvasPainter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
  }

  begin(width, height, scale = window.devicePixelRatio || 1) {
    const { canvas, context } = this;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = font(12);
    context.textBaseline = "middle";
  }

  rect(x, y, width, height, colour, { alpha = 1, radius = 0 } = {}) {
    const { context } = this;
    context.globalAlpha = alpha;
    context.fillStyle = colour;
    if (radius && width > 2 * radius) {
      context.beginPath();
      context.roundRect(x, y, width, height, radius);
      context.fill();
    } else context.fillRect(x, y, width, height);
    context.globalAlpha = 1;
  }

  frame(x, y, width, height, colour, thick = 1) {
    this.context.strokeStyle = colour;
    this.context.lineWidth = thick;
    this.context.strokeRect(x, y, width, height);
  }

  line(x1, y1, x2, y2, colour, { thick = 1, dash = [] } = {}) {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.setLineDash(dash);
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
    context.setLineDash([]);
  }

  curve(points, colour, { thick = 1, alpha = 1 } = {}) {
    const { context } = this;
    const [x1, y1, x2, y2, x3, y3, x4, y4] = points;
    context.globalAlpha = alpha;
    context.strokeStyle = colour;
    context.lineWidth = thick;
    context.beginPath();
    context.moveTo(x1, y1);
    context.bezierCurveTo(x2, y2, x3, y3, x4, y4);
    context.stroke();
    context.globalAlpha = 1;
  }

  polygon(points, colour) {
    const { context } = this;
    context.fillStyle = colour;
    context.beginPath();
    context.moveTo(points[0], points[1]);
    for (let i = 2; i < points.length; i += 2) context.lineTo(points[i], points[i + 1]);
    context.closePath();
    context.fill();
  }

  text(x, y, text, colour, { align = "left", bold = false, size = 12 } = {}) {
    const { context } = this;
    context.font = font(size, bold);
    context.fillStyle = colour;
    context.textAlign = align;
    context.fillText(text, x, y);
  }

  measure(text, { bold = false, size = 12 } = {}) {
    this.context.font = font(size, bold);
    return this.context.measureText(text).width;
  }

  /** Clip what `work` draws to a rectangle. */
  within(x, y, width, height, work) {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    work();
    context.restore();
  }
}
