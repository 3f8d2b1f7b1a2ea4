// What the figures with sliders have in common. A chapter holds <figure class="interactive" data-figure="NAME">, and a script
// beside this one puts {label, sliders, draw, ...} into amaml.NAME. No library and no network: pages are read from file:// too.
window.amaml = {
  // The palette of the printed figures, which can be told apart without colour vision; all else has the colour of the text.
  colours: { blue: "#0072B2", red: "#D55E00", green: "#009E73", orange: "#E69F00" },

  element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  },

  svg(tag, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  },

  minus: (text) => String(text).replaceAll("-", "−"),

  // A number for readers: `digits` that count, and a real minus.
  number(value, digits = 3) {
    if (value === 0 || !Number.isFinite(value)) return amaml.minus(value).replace("Infinity", "∞");
    const size = Math.abs(value), short = size < 1e-3 || size >= 10 ** digits ? value.toExponential(digits - 1) : value.toPrecision(digits);
    return amaml.minus(short.replace("e+", "e"));
  },

  // A line through points [x, y], as the data of a path. Far outside the drawing, points are moved to where browsers can count.
  line(points) {
    const near = (pixel) => Math.max(-1e5, Math.min(1e5, pixel)).toFixed(1);
    return points.map(([x, y], i) => `${i ? "L" : "M"}${near(x)},${near(y)}`).join("");
  },

  path(points, look) {
    return amaml.svg("path", { d: amaml.line(points), fill: "none", "stroke-width": 2, ...look });
  },

  // Boxes for `count` panels: beside one another, or below one another where the page is narrow. `ratio` is height over width.
  panels(width, count, ratio) {
    const columns = width < 560 ? 1 : count, [left, right, top, bottom] = [52, 20, 28, 44];
    const inner = Math.max(width / columns - left - right, 80), height = ratio * inner;
    const boxes = [...Array(count).keys()].map((i) => ({
      left: (i % columns) * (width / columns) + left, width: inner, height,
      top: Math.floor(i / columns) * (top + height + bottom) + top,
    }));
    return { boxes, height: (count / columns) * (top + height + bottom) };
  },

  // Axes in a box. Returns their parts, a `plot` that cuts off what is outside, and the maps `x`, `y` from numbers to pixels in it.
  axes(box, { title, x, y, xTicks, yTicks, xLabel, yLabel }) {
    const { svg } = amaml, { left, top, width, height } = box;
    const toX = (value) => ((value - x[0]) / (x[1] - x[0])) * width, toY = (value) => (1 - (value - y[0]) / (y[1] - y[0])) * height;
    const plot = svg("svg", { x: left, y: top, width, height });
    const text = (words, attributes) => svg("text", { fill: "currentColor", "font-size": 13, ...attributes }, words);
    const middle = { "text-anchor": "middle" }, turned = `rotate(-90 ${left - 38} ${top + height / 2})`;
    const parts = [
      svg("path", { d: `M${left},${top}v${height}h${width}`, fill: "none", stroke: "currentColor", "stroke-width": 1 }),
      text(title, { x: left + width / 2, y: top - 10, ...middle }),
      text(xLabel, { x: left + width / 2, y: top + height + 36, ...middle }),
      text(yLabel, { x: left - 38, y: top + height / 2, transform: turned, ...middle }),
      ...xTicks.map((value) => text(amaml.minus(value), { x: left + toX(value), y: top + height + 18, "font-size": 12, ...middle })),
      ...yTicks.map((value) => text(amaml.minus(value), { x: left - 5, y: top + toY(value) + 4, "font-size": 12, "text-anchor": "end" })),
      plot,
    ];
    return { parts, plot, x: toX, y: toY };
  },

  // Put drawing, sliders and read-out into a figure, and draw it at the sliders' first values.
  mount(root) {
    const { element, svg } = amaml, { label, sliders, legend, draw } = amaml[root.dataset.figure], values = {};
    const drawing = element("div", { class: "drawing" }), controls = element("div", { class: "controls" });
    const readOut = element("div", { class: "read-out", "aria-live": "polite" });
    let width = 0;
    const update = () => {
      width = drawing.clientWidth;
      const { height, parts, lines } = draw(values, width);
      const size = { width, height, viewBox: `0 0 ${width} ${height}` };
      drawing.replaceChildren(svg("svg", { role: "img", "aria-label": label, ...size }, ...parts));
      readOut.replaceChildren(...lines.map((line) => element("p", {}, line)));
    };
    for (const { name, words, min, max, step, value } of sliders) {
      const id = `${root.id}-${name}`, shown = element("span", { class: "value" });
      const input = element("input", { type: "range", id, min, max, step, value });
      const take = () => {
        values[name] = Number(input.value);
        shown.textContent = amaml.minus(input.value);
      };
      input.addEventListener("input", () => (take(), update()));
      take();
      controls.append(element("label", { for: id }, words), input, shown);
    }
    const key = legend.map(([colour, words, dashed]) =>
      element("li", {}, element("span", { class: "key", style: `border-top: 3px ${dashed || "solid"} ${colour}` }), words));
    root.prepend(drawing, element("ul", { class: "legend" }, ...key), controls, readOut);
    update();
    new ResizeObserver(() => drawing.clientWidth !== width && update()).observe(drawing);
  },
};

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("figure.interactive").forEach(amaml.mount));
