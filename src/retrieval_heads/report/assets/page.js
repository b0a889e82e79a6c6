const sections = [
  ...DATA.suites.filter((suite) => suite.kind !== "detect").map(cellSection),
  ...(DATA.suites.length ? [recordSection()] : []),
  ...DATA.heads.map(headSection),
  ...DATA.suites.filter((suite) => suite.kind === "detect").map(cellSection),
];
for (const [section, draw] of sections) {
  document.getElementById("pictures").append(section);
  draw();
}
DATA.doses.forEach((dose, place) => dose && document.getElementById(`dose-${place}`).append(doseChart(dose)));
darkPage.addEventListener("change", () => sections.forEach(([, draw]) => draw()));
addEventListener("hashchange", openAddress);
openAddress();
