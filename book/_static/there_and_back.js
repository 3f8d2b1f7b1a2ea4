// "There and back": gradient descent in two parameters, and its adjoint on the way back. The losses are those of the chapter.
(() => {
  const { colours, axes, number, panels, path, svg } = amaml;
  const theta = [-1.5, -0.3];

  // The support loss, a bent valley, with its gradient and its Hessian times a vector.
  const support = {
    gradient([a, b]) {
      const gap = b - 0.4 * a ** 2;
      return [-0.3 * (1 - a) - 1.92 * a * gap, 2.4 * gap];
    },
    hvp([a, b], [v, w]) {
      const gap = b - 0.4 * a ** 2;
      return [(0.3 - 1.92 * gap + 1.536 * a ** 2) * v - 1.92 * a * w, -1.92 * a * v + 2.4 * w];
    },
  };
  // The query loss, a round bowl.
  const query = {
    loss: ([a, b]) => 0.5 * ((a + 0.7) ** 2 + (b - 1.2) ** 2),
    gradient: ([a, b]) => [a + 0.7, b - 1.2],
  };

  // u_0 ... u_K.
  function descend(start, T, K) {
    const u = [start];
    for (let k = 0; k < K; k++) {
      const slope = support.gradient(u[k]);
      u.push(u[k].map((value, i) => value - (T / K) * slope[i]));
    }
    return u;
  }

  // The states, the adjoints lambda_0 ... lambda_K, and the meta-gradient lambda_0: one run there, one run back.
  function metaGradient(T, K, start = theta) {
    const u = descend(start, T, K), lambda = [];
    lambda[K] = query.gradient(u[K]);
    for (let k = K - 1; k >= 0; k--) {
      const bent = support.hvp(u[k], lambda[k + 1]);
      lambda[k] = lambda[k + 1].map((value, i) => value - (T / K) * bent[i]);
    }
    return { u, lambda, gradient: lambda[0], loss: query.loss(u[K]) };
  }

  // The same without any derivative: the whole run again from moved starts.
  function finiteDifference(T, K, eps = 1e-5, start = theta) {
    const verdict = (by, i) => query.loss(descend(start.map((value, j) => value + (i === j ? by : 0)), T, K)[K]);
    return start.map((_, i) => (verdict(eps, i) - verdict(-eps, i)) / (2 * eps));
  }

  const view = { x: [-1.9, 0.8], y: [-1, 1.4], xTicks: [-1.5, -1, -0.5, 0, 0.5], yTicks: [-1, -0.5, 0, 0.5, 1] };

  // Contour lines of the valley: where its loss is c, the second parameter follows from the first.
  function contours({ x, y, plot }) {
    for (let i = 0; i < 12; i++) {
      const c = 0.02 * 400 ** (i / 11), above = [], below = [];
      for (let a = -3; a <= 5; a += 0.02) {
        const rest = c - 0.15 * (1 - a) ** 2;
        if (rest < 0) continue;
        above.push([x(a), y(0.4 * a ** 2 + Math.sqrt(rest / 1.2))]);
        below.push([x(a), y(0.4 * a ** 2 - Math.sqrt(rest / 1.2))]);
      }
      plot.append(path([...above, ...below.reverse(), above[0]], { stroke: "currentColor", opacity: 0.25, "stroke-width": 1 }));
    }
  }

  // An arrow from a place along a vector, both in pixels.
  function arrow([x, y], [dx, dy], stroke, width) {
    const length = Math.hypot(dx, dy), head = Math.min(8, 0.6 * length), [ex, ey] = [x + dx, y + dy];
    const corner = (side) => [ex - (head * (dx + (side * dy) / 2)) / length, ey - (head * (dy - (side * dx) / 2)) / length];
    return path([[x, y], [ex, ey], corner(1), [ex, ey], corner(-1)], { stroke, "stroke-width": width });
  }

  function draw({ T, K }, width) {
    const { u, lambda, gradient, loss } = metaGradient(T, K), difference = finiteDifference(T, K);
    const { boxes, height } = panels(width, 2, 2.4 / 2.7);
    const labels = { xLabel: "first parameter", yLabel: "second parameter" };
    const [there, back] = ["there: the states u", "back: the adjoint λ"].map((title, i) => axes(boxes[i], { ...view, ...labels, title }));
    const shown = u.map(([a, b]) => [there.x(a), there.y(b)]);
    for (const axis of [there, back]) contours(axis);
    there.plot.append(path(shown, { stroke: colours.blue, class: "states" }));
    for (const [cx, cy] of shown) there.plot.append(svg("circle", { cx, cy, r: K > 32 ? 2 : 3.5, fill: colours.blue }));
    const [cx, cy] = [back.x(-0.7), back.y(1.2)], unit = back.x(1) - back.x(0);
    for (let r = 0.5; r < 3; r += 0.5) {
      back.plot.append(svg("circle", { cx, cy, r: r * unit, fill: "none", stroke: colours.green, "stroke-dasharray": "2 4" }));
    }
    for (const [dx, dy] of [[6, 0], [0, 6]]) {
      back.plot.append(path([[cx - dx, cy - dy], [cx + dx, cy + dy]], { stroke: colours.green }));
    }
    back.plot.append(path(shown, { stroke: colours.blue }));
    const scale = Math.min(0.6, 0.75 / Math.max(...lambda.map((l) => Math.hypot(...l))));  // all to one scale
    for (let k = K; k >= 0; k -= k <= K / 8 ? 1 : Math.ceil(K / 8)) {
      const end = k === K || k === 0, by = lambda[k].map((value, i) => scale * unit * value * (i ? -1 : 1));
      back.plot.append(arrow(shown[k], by, end ? colours.red : colours.orange, end ? 3 : 1.8));
    }
    const [first, last] = [shown[0], shown[K]], text = { fill: "currentColor", "font-size": 14, class: "on-lines" };
    for (const { plot } of [there, back]) {
      plot.append(svg("text", { x: first[0] - 16, y: first[1] + 5, ...text }, "θ"));
      plot.append(svg("text", { x: last[0] + 8, y: last[1] - 8, ...text }, "u", svg("tspan", { dy: 4, "font-size": 10 }, "K")));
    }
    const pair = (vector) => `(${vector.map((value) => number(value, 8)).join(", ")})`;
    const norm = (vector) => Math.hypot(...vector), along = gradient[0] * lambda[K][0] + gradient[1] * lambda[K][1];
    const apart = norm(gradient.map((value, i) => value - difference[i])) / norm(gradient);
    const lines = [
      `meta-gradient, λ₀: ${pair(gradient)}`,
      `finite difference: ${pair(difference)}`,
      `Relative difference of the two: ${number(apart, 1)}.`,
      `Step size h = ${number(T / K)}; query loss at the end: ${number(loss)}.`,
      `Cosine of the arrows at both ends: ${number(along / norm(gradient) / norm(lambda[K]))}; ` +
        `length of the query gradient over that of the meta-gradient: ${number(norm(lambda[K]) / norm(gradient))}.`,
    ];
    return { height, parts: [...there.parts, ...back.parts], lines };
  }

  amaml.thereAndBack = {
    label: "Two panels with the contour lines of a bent valley and the steps of gradient descent in it; " +
      "in the second one, arrows along the steps, from the query gradient at the end back to the meta-gradient at the start.",
    sliders: [
      { name: "T", words: "horizon T", min: 0.1, max: 3, step: 0.1, value: 1.2 },
      { name: "K", words: "steps K", min: 1, max: 64, step: 1, value: 16 },
    ],
    legend: [
      [colours.blue, "states u, from θ on"],
      [colours.red, "query gradient at the last state, meta-gradient at θ"],
      [colours.orange, "λ in between"],
      [colours.green, "query loss, its minimum at the cross", "dotted"],
    ],
    draw, metaGradient, finiteDifference,
  };
})();
