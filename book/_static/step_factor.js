// One direction with the eigenvalue a: what a step of size h multiplies by, forward and back, once and K times.
(() => {
  const { colours, axes, number, panels, path, svg } = amaml;

  // The factor of one step: of gradient descent, of the flow, and of each of them undone.
  function factors(ha) {
    return { descent: 1 - ha, flow: Math.exp(-ha), descentBack: 1 / (1 - ha), flowBack: Math.exp(ha) };
  }

  // The same over K steps.
  function over(ha, K) {
    return Object.fromEntries(Object.entries(factors(ha)).map(([name, factor]) => [name, factor ** K]));
  }

  function region(ha) {
    const size = Math.abs(1 - ha);
    if (ha === 0) return "still: nothing moves";
    if (ha < 0) return "negative curvature: descent and flow run away from a ridge";
    if (ha === 2) return "on the edge: the steps jump to and fro for ever";
    if (size > 1) return "diverging: the steps overshoot by more each time, though the flow contracts";
    if (ha === 1) return "contracting in one step: nothing is left to go back from";
    return size < 1 && ha > 1 ? "contracting and oscillating: each step overshoots, by less each time" : "contracting";
  }

  const looks = {  // of a line, by the name of its factor
    descent: { stroke: colours.blue }, flow: { stroke: colours.green, "stroke-dasharray": "7 4" },
    descentBack: { stroke: colours.red }, flowBack: { stroke: colours.orange, "stroke-dasharray": "7 4" },
  };

  const thin = { stroke: "currentColor", "stroke-width": 1, opacity: 0.5 };

  // The left panel: both factors of one step over h a, and where we are.
  function once(axis, ha, { width, height }) {
    const { plot, x, y } = axis, points = [...Array(121).keys()].map((i) => -0.5 + i * 0.025);
    const words = [["ridge", -0.5, 0], ["contracting", 0, 1], ["oscillating", 1, 2], ["diverging", 2, 2.5]];
    for (const [i, [name, from, to]] of words.entries()) {
      const band = { x: x(from), y: 0, width: x(to) - x(from), height, fill: "currentColor", opacity: i % 2 ? 0.04 : 0.12 };
      const start = x(from) + 12, bottom = height - 6;
      plot.append(svg("rect", band), svg("text", { x: start, y: bottom, fill: "currentColor", "font-size": 12, class: "on-lines",
        transform: `rotate(-90 ${start} ${bottom})` }, name));
    }
    for (const level of [-1, 1]) plot.append(path([[0, y(level)], [width, y(level)]], thin));
    for (const name of ["descent", "flow"]) {
      plot.append(path(points.map((at) => [x(at), y(factors(at)[name])]), looks[name]));
      plot.append(svg("circle", { cx: x(ha), cy: y(factors(ha)[name]), r: 5, fill: looks[name].stroke }));
    }
    plot.append(path([[x(ha), 0], [x(ha), height]], { ...thin, opacity: 1, "stroke-dasharray": "2 3" }));
  }

  // The right panel: sizes after each step, on a logarithmic axis; straight lines, since every step multiplies by the same.
  function often(axis, ha, K) {
    const { plot, x, y } = axis;
    for (const level of [0, 16]) plot.append(path([[x(0), y(level)], [x(K), y(level)]], thin));
    plot.append(svg("text", { x: x(0) + 5, y: y(16) - 5, fill: "currentColor", "font-size": 12 }, "16 digits are lost"));
    for (const [name, factor] of Object.entries(factors(ha))) {
      const decades = Math.max(-400, Math.min(400, Math.log10(Math.abs(factor))));
      plot.append(path([...Array(K + 1).keys()].map((k) => [x(k), y(k * decades)]), { ...looks[name], class: name }));
    }
  }

  function draw({ ha, K }, width) {
    const { boxes, height } = panels(width, 2, 0.85);
    const words = `${K} step${K > 1 ? "s" : ""}`;
    const left = axes(boxes[0], { title: "one step", x: [-0.5, 2.5], y: [-1.6, 1.8],
      xTicks: [0, 0.5, 1, 1.5, 2, 2.5], yTicks: [-1, 0, 1], xLabel: "step size times eigenvalue, h a", yLabel: "factor" });
    const right = axes(boxes[1], { title: words, x: [0, K], y: [-20, 20], xTicks: [0, K], yTicks: [-16, -8, 0, 8, 16],
      xLabel: "steps taken, forward or back", yLabel: "size, powers of ten" });
    once(left, ha, boxes[0]);
    often(right, ha, K);
    const one = factors(ha), all = over(ha, K), undone = Math.abs(all.descentBack);
    const digits = (growth) => growth > 1 ? `${Math.max(0, 16 - Math.log10(growth)).toFixed(0)} of 16 digits are left` : "no digit is lost";
    const lines = [
      `h a = ${amaml.minus(ha)}: ${region(ha)}.`,
      `One step forward multiplies by 1 − h a = ${number(one.descent)} in gradient descent, and by ${number(one.flow)} in the flow.`,
      `${words} forward: by ${number(all.descent)} and by ${number(all.flow)}.`,
      `${words} back multipl${K > 1 ? "y" : "ies"} a rounding error by ${number(undone)} (steps undone; ${digits(undone)}) ` +
        `and by ${number(all.flowBack)} (flow reversed; ${digits(all.flowBack)}).`,
    ];
    return { height, parts: [...left.parts, ...right.parts], lines };
  }

  amaml.stepFactor = {
    label: "Left, the factor of one step over step size times eigenvalue: a falling line for gradient descent, a curve " +
      "above it for the flow, in bands named ridge, contracting, oscillating, diverging. Right, on a logarithmic axis, " +
      "four straight lines from one: two for the way forward, two for the way back.",
    sliders: [
      { name: "ha", words: "h a", min: -0.5, max: 2.5, step: 0.01, value: 0.5 },
      { name: "K", words: "steps K", min: 1, max: 100, step: 1, value: 40 },
    ],
    legend: [
      [colours.blue, "gradient descent, 1 − h a"],
      [colours.green, "flow, exp(−h a)", "dashed"],
      [colours.red, "descent undone, 1 / |1 − h a|"],
      [colours.orange, "flow reversed, exp(h a)", "dashed"],
    ],
    draw, factors, over, region,
  };
})();
