const moments = DATA.lines.retrieved.flatMap(({ points }) => points.map(([x]) => x));
const isOfDays = Math.max(...moments) - Math.min(...moments) > 2 * 86400;
const moment = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");
const charts = [
  ["retrieved", "Share of cells retrieved"],
  ["score", "Mean of the score that decides"],
].map(([part, title]) =>
  lineChart({
    label: `${title}, a line for each suite`,
    lines: DATA.lines[part],
    xTitle: "Began",
    yTitle: title,
    xText: moment,
    tickText: (x) => (isOfDays ? moment(x).slice(0, 10) : moment(x).slice(5)),
  }),
);
document.getElementById("lines").append(...charts);
