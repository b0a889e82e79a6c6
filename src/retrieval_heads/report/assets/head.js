const SAMPLES_AT_FIRST = 30;

/** By a detect suite's name, what opens one of its query heads. */
const openers = new Map();

opens.head = (address) => {
  const [, suite, layer, head] = /^(?:(.*)\/)?(\d+)-(\d+)$/.exec(address) || [];
  if (layer !== undefined) openers.get(suite ?? DATA.heads[0]?.name)?.(Number(layer), Number(head));
};

/** Open a head: its scores, what they were on each sample, and what it did at each token where that was kept. */
function openHead(found, view, head, score, restore) {
  const ordered = sorted(view.heads, score, true).filter((each) => each.values[score] !== null);
  const place = ordered.indexOf(head);
  const step = (to) => openHead(found, view, ordered[(to + ordered.length) % ordered.length], score, restore);
  const layer = view.layers[head.row];
  const retrieves = head.values.copy >= found.threshold && view.group === 1;
  const name = DATA.heads.length > 1 ? `${found.name}/${head.layer}-${head.head}` : `${head.layer}-${head.head}`;
  openDialog({
    title: headName(view, head.layer, head.head),
    beside: make("span", { className: "note", textContent: [layer.kind === "attention" ? "" : layer.kind, layer.window ? `sliding window of ${count(layer.window)}` : "", retrieves ? "a retrieval head" : ""].filter(Boolean).join(", ") }),
    turns: place >= 0 ? [place, ordered.length, "head", step] : null,
    body: view.group === 1 ? [...headScores(found, view, head), ...headSamples(found, head, score, restore)] : headScores(found, view, head),
    address: view.group === 1 ? ["head", name] : [],
    restore,
  });
}

function headScores(found, view, head) {
  const columns = ["Score", "Mean", "95 % interval", "Rank"].map((textContent) => make("th", { scope: "col", textContent }));
  const rows = Object.entries(head.values)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => {
      const ends = intervalOf(view, name, head.row, head.head);
      return make(
        "tr",
        {},
        make("td", { textContent: scoreName(name), title: found.scores[name].definition }),
        make("td", { textContent: value.toFixed(3).replace("-", "\u2212") }),
        make("td", { textContent: ends ? `${ends[0].toFixed(3)} – ${ends[1].toFixed(3)}` : "–" }),
        make("td", { textContent: `${count(head.ranks[name])} of ${count(view.heads.length)}` }),
      );
    });
  const table = make("table", { className: "scores" }, make("thead", {}, make("tr", {}, ...columns)), make("tbody", {}, ...rows));
  const parts = [make("h3", { textContent: "Scores" }), scrolled(table, "Scores of this head")];
  if (view.group > 1) {
    const first = head.head * view.group;
    parts.push(make("p", { className: "note", textContent: `Query heads ${first} to ${first + view.group - 1} of the layer share it; each score is the greatest of theirs.` }));
  }
  return parts;
}

function headSamples(found, head, score, restore) {
  const { samples } = found;
  const place = samples.heads.findIndex(([row, number]) => row === head.row && number === head.head);
  const suite = DATA.suites.find((each) => each.kind === "detect" && each.name === found.name);
  if (place < 0 || !suite) {
    const reason = samples.records.length ? "This page holds samples of the best heads alone; results.jsonl has them of all." : "No samples are stored beside these heads.";
    return [make("p", { className: "note", textContent: reason })];
  }
  const measured = samples.records.map((index, number) => ({
    record: suite.records[index],
    number,
    values: Object.fromEntries(Object.entries(samples.scores).map(([name, heads]) => [name, heads[place][number]])),
  }));
  const shown = score in samples.scores ? score : Object.keys(samples.scores)[0];
  const parts = [make("h3", { textContent: `${capital(scoreName(shown))} of each sample` })];
  const charts = ["x", "y"].map((side) => sampleChart(suite, side, measured, shown)).filter(Boolean);
  if (charts.length) parts.push(make("div", { className: "charts" }, ...charts), make("p", { className: "note", textContent: "The line is the mean over samples whose answer held the needle, which alone count; rings are the others." }));
  parts.push(sampleTable(suite, measured, Object.keys(samples.scores), restore));
  if (samples.steps.length && samples.steps[0].copied[place]) parts.push(...stepsOf(suite, samples, place));
  return parts;
}

/** Every sample's figure over one side of the grid. */
function sampleChart(suite, side, measured, name) {
  const { axis, title } = suite.sides[side];
  const known = measured.filter(({ record, values }) => typeof record[side] === "number" && values[name] !== null);
  const xs = inOrder(known.map(({ record }) => record[side]));
  if (xs.length < 2) return null;
  const counting = known.filter(({ record }) => record.status === "pass");
  const points = xs.flatMap((x) => {
    const values = counting.filter(({ record }) => record[side] === x).map(({ values }) => values[name]);
    return values.length ? [[x, mean(values), null, null, values.length]] : [];
  });
  return lineChart({
    label: `${scoreName(name)} of each sample by ${title}`,
    lines: [{ name: "", points }],
    dots: known.map(({ record, values }) => [record[side], values[name], record.status === "pass"]),
    xTitle: capital(title),
    yTitle: scoreName(name),
    xText: (x) => shownOn({ axis }, x),
    isLog: axis !== "depth" && xs[0] > 0 && xs[xs.length - 1] / xs[0] >= 8,
  });
}

function sampleTable(suite, measured, names, restore) {
  const items = measured.map(({ record }) => ({ suite, record }));
  const host = make("div", {});
  const fill = (limit) => {
    const rows = measured.slice(0, limit).map(({ record, number, values }) => {
      const open = make("button", { type: "button", className: "plain", textContent: placeName(suite, record.x, record.y) });
      open.onclick = () => openRecord(items, number, restore);
      const cells = names.map((name) => make("td", { textContent: values[name] === null ? "–" : values[name].toFixed(3).replace("-", "\u2212") }));
      return make("tr", {}, make("td", {}, open), make("td", { className: `status ${record.status}`, textContent: STATUS[record.status] }), ...cells);
    });
    const heads = ["Sample", "Answer", ...names.map(scoreName)].map((textContent) => make("th", { scope: "col", textContent }));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
    const more = make("button", { type: "button", textContent: `Show all ${counted(measured.length, "sample")}`, onclick: () => fill(Infinity) });
    host.replaceChildren(scrolled(table, "Samples"), ...(limit < measured.length ? [make("div", { className: "more" }, more)] : []));
  };
  fill(SAMPLES_AT_FIRST);
  return host;
}

/** For one sample: at each token of the answer how much of the head's attention lay on the needle, and what it copied. */
function stepsOf(suite, samples, place) {
  const host = make("div", {});
  const names = samples.steps.map(({ sample }, at) => {
    const record = suite.records[samples.records[sample]];
    return [String(at), [placeName(suite, record.x, record.y), record.seed && `seed ${record.seed}`].filter(Boolean).join(", ")];
  });
  const show = (at) => host.replaceChildren(...stepsShown(suite, samples, samples.steps[at], place));
  show(0);
  return [make("h3", { textContent: "Token by token" }), make("div", { className: "controls" }, choice("Sample", names, "0", (at) => show(Number(at)))), host];
}

function stepsShown(suite, samples, steps, place) {
  const [copied, mass] = [steps.copied[place], steps.mass[place]];
  const needle = steps.needle || [];
  const colour = ramp(headColours(false));
  const token = (text, share, isCopied, title) => {
    const shade = colour(share);
    const element = make("span", { className: `token${isCopied ? " copied" : ""}`, textContent: text, title });
    Object.assign(element.style, { background: `rgb(${shade.join(",")})`, color: readableOn(shade) });
    return element;
  };
  const textOf = (texts, at, fallback) => (texts && texts[at] !== undefined ? texts[at] : fallback);
  const visible = (text) => text.replaceAll("\n", "↵");
  const answer = copied.map((to, at) => {
    const said = to ? `; it copied token ${to} of the needle${needle[to - 1] ? `, “${needle[to - 1].trim()}”` : ""}` : "";
    return token(visible(textOf(steps.answer, at, `[${steps.tokens[at]}]`)), mass[at], to > 0, `token ${at + 1}: ${plain(mass[at])} of its attention on the needle${said}`);
  });
  const most = Math.max(0, ...copied, needle.length);
  const sources = Array.from({ length: most }, (_, at) => {
    const times = copied.filter((to) => to === at + 1).length;
    return token(visible(textOf(needle, at, `[${at + 1}]`)), 0, times > 0, times ? `token ${at + 1} of the needle, copied ${times === 1 ? "once" : `${times} times`}` : `token ${at + 1} of the needle, not copied`);
  });
  const rows = copied.map((to, at) => [at, to]).filter(([, to]) => to);
  const listed = rows.map(([at, to]) => `${textOf(steps.answer, at, `answer token ${at + 1}`).trim()} ← needle token ${to}${needle[to - 1] ? ` (${needle[to - 1].trim()})` : ""}`);
  const note = `The darker, the more of the head's attention lay on the needle as it wrote the token; framed: its strongest key was the very token that was written.${steps.answer ? "" : " This run kept no text of tokens, so that their numbers stand here."}`;
  return [
    make("p", { className: "note", textContent: note }),
    make("h4", { textContent: "Answer" }),
    make("p", { className: "tokens", dir: "auto" }, ...answer),
    make("h4", { textContent: "Needle" }),
    make("p", { className: "tokens", dir: "auto" }, ...sources),
    make("p", { className: "note", textContent: listed.length ? `Copied: ${listed.join(", ")}.` : "It copied nothing in this answer." }),
  ];
}
