const CHART = { width: 360, height: 220, left: 34, right: 12, top: 10, bottom: 40 };
const MOST_POINTS = 40;

const SVG = document.getElementById("svg").namespaceURI; // which looks like an address, and the page names none

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/**
 * Lines over numbers, with a table of the same numbers.
 *
 * `lines` are {name, points}, a point [x, mean, low, high, count]; `xText(x)` writes a value of x, and `tickText(x)` beside the axis; `isLog` and `isOrdinal` say how
 * they lie; `limit` is a level to mark; `dots` are single values, [x, y, whether it is full].
 */
function lineChart({ label, lines, xTitle, yTitle, xText = plain, tickText = xText, isLog, isOrdinal, limit, dots = [] }) {
  const xs = [...new Set([...dots.map(([x]) => x), ...lines.flatMap(({ points }) => points.map(([x]) => x))])].sort((first, second) => first - second);
  const at = (x) => (isOrdinal ? xs.indexOf(x) : isLog ? Math.log(x) : x);
  const [first, last] = [at(xs[0]), at(xs[xs.length - 1])];
  const { width, height, left, right, top, bottom } = CHART;
  const pad = 8;
  const placeX = (x) => left + pad + ((at(x) - first) / (last - first || 1)) * (width - left - right - 2 * pad);
  const values = [...dots.map(([, y]) => y), ...lines.flatMap(({ points }) => points.flatMap(([, ...ends]) => ends.slice(0, 3).filter((value) => value !== null && value !== undefined)))];
  const [low, high] = [Math.min(0, ...values), Math.max(limit || 0, ...values)];
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100].find((each) => (high - low) / each <= 5) || 1000;
  const [floor, ceiling] = [Math.floor(low / step) * step, Math.max(Math.ceil(high / step - 1e-9) * step, step)];
  const placeY = (y) => top + (1 - (y - floor) / (ceiling - floor)) * (height - top - bottom);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label}; as a table below` });
  for (let level = floor; level <= ceiling + step / 2; level += step) {
    drawing.append(
      svg("line", { class: "grid", x1: left, x2: width - right, y1: placeY(level), y2: placeY(level) }),
      svg("text", { x: left - 6, y: placeY(level) + 4, "text-anchor": "end" }, String(Math.round(level * 100) / 100).replace("-", "\u2212")),
    );
  }
  let free = Infinity;
  for (const x of [...xs].reverse()) {
    const text = String(tickText(x));
    const room = text.length * 3.4 + 4;
    const place = Math.min(placeX(x), width - room + 2); // a date at the end would be cut off
    if (!text || place + room > free) continue; // from the far end down: it is what the picture is about
    free = place - room;
    drawing.append(svg("text", { x: place, y: height - bottom + 16, "text-anchor": "middle" }, text));
  }
  drawing.append(
    svg("line", { class: "axis", x1: left, x2: width - right, y1: placeY(floor), y2: placeY(floor) }),
    svg("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, `${xTitle}${isLog ? ", log scale" : ""}`),
  );
  if (limit !== undefined) drawing.append(svg("line", { class: "limit", x1: left, x2: width - right, y1: placeY(limit), y2: placeY(limit) }));
  for (const isFull of [true, false]) {
    const rings = dots.filter(([, , full]) => full === isFull).map(([x, y]) => `M${placeX(x) - 2.5} ${placeY(y)}a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0 -5 0`);
    if (rings.length) drawing.append(svg("path", { class: isFull ? "dot" : "ring", d: rings.join("") }));
  }
  lines.filter(({ points }) => points.length).forEach(({ points }, place) => drawing.append(...drawnLine(points, place, lines.length, placeX, placeY)));
  const key = lines.filter(({ name }) => name).map(({ name }, place) => make("span", {}, make("i", { className: `line-${place % 6}` }), name));
  const title = make("p", { className: "note title", textContent: yTitle });
  return make("div", { className: "chart" }, title, drawing, key.length ? make("p", { className: "note key" }, ...key) : null, pointTable({ label, lines, xTitle, xText }));
}

function drawnLine(points, place, total, placeX, placeY) {
  const colour = `line-${place % 6}`;
  const shift = (place - (total - 1) / 2) * 4; // intervals of neighbours stand side by side
  const ends = points.filter(([, , low]) => low !== null && low !== undefined);
  const parts = [];
  if (total > 4) ends.length = 0; // of so many lines intervals would be a thicket
  if (ends.length && points.length <= MOST_POINTS) {
    parts.push(svg("path", { class: `whisker ${colour}`, d: ends.map(([x, , low, high]) => `M${placeX(x) + shift} ${placeY(low)}V${placeY(high)}`).join("") }));
  } else if (ends.length) {
    const edge = [...ends.map(([x, , , high]) => [x, high]), ...ends.map(([x, , low]) => [x, low]).reverse()];
    parts.push(svg("path", { class: `band ${colour}`, d: `M${edge.map(([x, y]) => `${placeX(x)} ${placeY(y)}`).join("L")}Z` }));
  }
  parts.push(svg("path", { class: `drawn ${colour}`, d: `M${points.map(([x, y]) => `${placeX(x) + shift} ${placeY(y)}`).join("L")}` }));
  if (points.length <= MOST_POINTS) {
    const marks = points.map(([x, y]) => `M${placeX(x) + shift - 3} ${placeY(y)}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0`).join("");
    parts.push(svg("path", { class: `point ${colour}`, d: marks }));
  }
  return parts;
}

/** A chart's numbers, made when they are asked for. */
function pointTable({ label, lines, xTitle, xText }) {
  const details = make("details", {}, make("summary", { textContent: "As a table" }));
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    const named = lines.some(({ name }) => name);
    const head = (textContent) => make("th", { scope: "col", textContent });
    const rows = lines.flatMap(({ name, points }) =>
      points.map(([x, value, low, high, total]) => {
        const interval = low === null || low === undefined ? "" : `${low.toFixed(3)} – ${high.toFixed(3)}`;
        const cells = [...(named ? [name] : []), value.toFixed(3), interval, total === undefined ? "" : count(total)];
        return make("tr", {}, make("th", { scope: "row", textContent: String(xText(x)) }), ...cells.map((textContent) => make("td", { textContent })));
      }),
    );
    const heads = [xTitle, ...(named ? ["Line"] : []), "Mean", "95 % interval", "Values"].map(head);
    details.append(scrolled(make("table", { className: "arms" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)), label));
  });
  return details;
}

/** Accuracy by how many heads are masked. */
function doseChart({ suite, lines }) {
  return lineChart({
    label: `${suite}: accuracy by masked heads`,
    lines: Object.entries(lines).map(([name, points]) => ({ name, points })),
    xTitle: "Masked heads",
    yTitle: "Accuracy",
    isOrdinal: true,
  });
}

/** The heads' means from the highest to the lowest: how few retrieve. */
function distributionChart(found, view, name) {
  const values = sorted(view.heads, name, true).map((head) => head.values[name]).filter((value) => value !== null);
  const ticks = new Set([1, 10, 100, 1000, 10000].filter((place) => place < values.length / 2).concat(values.length));
  const hasLimit = name === "copy"; // the paper counts its retrieval heads by it
  const above = values.filter((value) => value >= found.threshold).length;
  const chart = lineChart({
    label: `${found.name}: mean ${scoreName(name)} of every ${view.group === 1 ? "head" : "KV head"}, from the highest`,
    lines: [{ name: "", points: values.map((value, place) => [place + 1, value]) }],
    xTitle: `${view.group === 1 ? "Heads" : "KV heads"}, from the highest score`,
    yTitle: `Mean ${scoreName(name)}`,
    xText: count,
    tickText: (place) => (ticks.has(place) ? count(place) : ""),
    isLog: values.length > 1,
    ...(hasLimit ? { limit: found.threshold } : {}),
  });
  if (hasLimit) chart.append(make("p", { className: "note", textContent: `${count(above)} of ${count(values.length)} have a mean of ${found.threshold} or more, the dashed line: retrieval heads.` }));
  return chart;
}
