// The binomial schedule of checkpoints: which states are kept, and which steps are taken again. It is `Checkpoint(snapshots=s)` of
// amaml_core/adjoint.py, and the notes that experiments/common/schedules.py takes of it, in another language.
(() => {
  const { colours, axes, number, panels, path } = amaml;

  function binomial(n, k) {
    let found = 1;
    for (let i = 1; i <= k; i++) found = (found * (n - k + i)) / i;
    return found;
  }

  // beta(s, r): how many states s snapshots can hand out if no step is taken more than r times.
  const reach = (s, r) => binomial(s + r, s);

  // How many steps to take before the next snapshot.
  function split(steps, snapshots) {
    if (snapshots === 1) return steps - 1;
    let r = 1;
    while (reach(snapshots, r) < steps) r++;
    return Math.max(1, Math.min(reach(snapshots, r - 1), steps - reach(snapshots - 1, r - 1)));
  }

  // All calls in their order: {kind, step}, where a step forward leads from state `step` to the next, and one back needs that state.
  function calls(K, snapshots) {
    const log = [], waiting = [];  // the states in memory that will be climbed from, the last one on top
    const climb = (from, to) => {
      for (let step = from; step < to; step++) log.push({ kind: "forward", step });
    };
    for (let at = 0, free = snapshots; at < K; free--) {
      const next = free > 1 && K - at > 1 ? at + split(K - at, free) : K;
      waiting.push(at);
      climb(at, next);
      at = next;
    }
    for (let stop = K; waiting.length; ) {
      const from = waiting.at(-1);
      if (stop - from > 1) {
        const next = from + split(stop - from, Math.max(snapshots - waiting.length + 1, 1));
        waiting.push(next);
        climb(from, next);
      } else {
        log.push({ kind: "backward", step: from });
        stop = waiting.pop();
      }
    }
    return log;
  }

  // The states that lie in memory, {state, made, read}: read by another call than the one right after they were made.
  function kept(log) {
    const made = new Map([[0, 0]]), last = new Map();
    log.forEach(({ kind, step }, time) => {
      const before = log[time - 1], atHand = time === 0 || (before.kind === "forward" && before.step === step - 1);
      if (!atHand) last.set(`${step} ${made.get(step)}`, { state: step, made: made.get(step), read: time });
      if (kind === "forward") made.set(step + 1, time + 1);
    });
    return [...last.values()];
  }

  // Forward steps in all, how often the step that is taken most often is taken, and the largest number of states at once.
  function cost(K, snapshots) {
    const log = calls(K, snapshots), times = Array(K).fill(0), change = Array(log.length + 2).fill(0);
    for (const { kind, step } of log) if (kind === "forward") times[step]++;
    for (const { made, read } of kept(log)) (change[made]++, change[read + 1]--);
    let states = 0, most = 0;
    for (const by of change) most = Math.max(most, (states += by));
    return { forwardSteps: times.reduce((sum, n) => sum + n), repetitions: Math.max(...times), states: most };
  }

  // r (K + 1) - beta(s + 1, r - 1), with the least r that reaches the K + 1 states.
  function closedForm(K, snapshots) {
    let r = 1;
    while (reach(snapshots, r) < K + 1) r++;
    return { r, forwardSteps: r * (K + 1) - reach(snapshots + 1, r - 1) };
  }

  function draw({ K, s }, width) {
    const log = calls(K, s), { boxes, height } = panels(width, 1, width < 560 ? 0.75 : 0.42), end = log.length;
    const tidy = (most) => [0, 1, 2, 3, 4].map((i) => Math.round((i * most) / 4)).filter((n, i, all) => n !== all[i - 1]);
    const axis = axes(boxes[0], { title: `Checkpoint(snapshots=${s}), K = ${K}`, x: [0, end], y: [-0.02 * K, 1.02 * K],
      xTicks: tidy(end), yTicks: tidy(K), xLabel: "steps taken, forward or back", yLabel: "state number" });
    const { plot, x, y } = axis, paths = { memory: "", first: "", again: "", back: "" }, seen = new Set();
    for (const { state, made, read } of kept(log)) paths.memory += amaml.line([[x(made), y(state)], [x(read), y(state)]]);
    log.forEach(({ kind, step }, time) => {
      const up = kind === "forward", piece = amaml.line([[x(time), y(step + !up)], [x(time + 1), y(step + up)]]);
      paths[up ? (seen.has(step) ? "again" : "first") : "back"] += piece;
      seen.add(step);
    });
    const looks = { memory: "currentColor", first: colours.blue, again: colours.orange, back: colours.red };
    for (const [name, d] of Object.entries(paths)) {
      const look = name === "memory" ? { opacity: 0.35, "stroke-width": 1.5 } : { "stroke-linecap": "round" };
      plot.append(path([], { d, stroke: looks[name], class: name, ...look }));
    }
    const { forwardSteps, repetitions, states } = cost(K, s), form = closedForm(K, s);
    const many = (n, words) => `${n} ${words}${n === 1 ? "" : "s"}`;
    const lines = [
      `Forward steps in the drawing: ${forwardSteps}, of which ${forwardSteps - K} again.`,
      `Closed form, r (K + 1) − β(s + 1, r − 1) with r = ${form.r}: ` +
        `${form.r} · ${K + 1} − ${reach(s + 1, form.r - 1)} = ${form.forwardSteps}.`,
      `That is ${many(number(forwardSteps / K), "forward solve")}, with at most ${many(states, "state")} in memory; ` +
        `no step is taken more than ${many(repetitions, "time")}.`,
    ];
    return { height, parts: axis.parts, lines };
  }

  amaml.checkpointSchedule = {
    label: "State number over the steps taken: one climb to the top, then many shorter climbs, each from a state in memory, " +
      "between the steps back, which come down to the start one by one.",
    sliders: [
      { name: "K", words: "steps K", min: 1, max: 60, step: 1, value: 24 },
      { name: "s", words: "snapshots s", min: 1, max: 10, step: 1, value: 3 },
    ],
    legend: [
      [colours.blue, "step forward"],
      [colours.orange, "step forward, taken again"],
      [colours.red, "step back"],
      ["color-mix(in srgb, currentColor 45%, transparent)", "state in memory"],
    ],
    draw, calls, kept, cost, closedForm,
  };
})();
