"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);

/** An element with properties and children; text becomes text nodes, so nothing in it is markup. */
function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.startsWith("aria-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const whole = new Intl.NumberFormat("en");
const count = (number) => whole.format(number);
const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
const plain = (number) => String(Math.round(number * 10000) / 10000);

/** Two decimals; a bare 1 or 0 is exact, so that 0.996 does not pass for a perfect score. */
function score(value, signed) {
  const text = [-1, 0, 1].includes(value) ? String(value) : value.toFixed(2);
  return signed && value > 0 ? `+${text}` : text.replace("-", "\u2212");
}

/** `rouge1_recall` as people write it: ROUGE-1 recall. */
function scoreName(name) {
  const rouge = /^rouge(\w+?)_(.+)$/.exec(name);
  if (!rouge) return name.replaceAll("_", " ");
  const [, kind, rest] = rouge;
  const words = rest.replace(/^f(?=_|$)/, "F").replace("_novel", ", words not in the question").replaceAll("_", " ");
  return `ROUGE-${kind} ${words}`;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Values on an axis, each once: numbers ascending, then names as they came. */
function inOrder(values) {
  const each = [...new Set(values)];
  const numbers = each.filter((value) => typeof value === "number").sort((first, second) => first - second);
  return [...numbers, ...each.filter((value) => typeof value !== "number")];
}

/** A value on an axis: whole numbers of tokens with their thousands apart. */
function shownOn(side, value) {
  if (typeof value !== "number") return value;
  return side.axis === "depth" ? plain(value) : Number.isInteger(value) ? count(value) : plain(value);
}

/** A cell's place in words: 4,096 tokens, depth 50 %. */
function placeName(suite, x, y) {
  const words = ({ axis }, value) => {
    if (axis === "length") return `${count(value)} tokens`;
    if (axis === "depth") return `depth ${plain(value)} %`;
    return axis && `${axis.replaceAll("_", " ")} ${shownOn({ axis }, value)}`;
  };
  return [words(suite.sides.x, x), words(suite.sides.y, y)].filter(Boolean).join(", ");
}

/** A labelled choice; `options` are [value, label]. */
function choice(label, options, chosen, onChange) {
  const select = make("select", {}, ...options.map(([value, text]) => make("option", { value, textContent: text })));
  select.value = chosen;
  select.addEventListener("change", () => onChange(select.value));
  return make("label", {}, label, select);
}

/** A table that may be wider than the page, reached by the keyboard. */
const scrolled = (table, label) => make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": label }, table);

const darkPage = matchMedia("(prefers-color-scheme: dark)");
const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A colour map from evenly spaced anchors, as a function from 0..1 to [red, green, blue]. */
function ramp(anchors) {
  const points = anchors.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return (share) => {
    const place = Math.min(1, Math.max(0, share)) * (points.length - 1);
    const low = Math.min(points.length - 2, Math.floor(place));
    return points[low].map((value, part) => Math.round(value + (points[low + 1][part] - value) * (place - low)));
  };
}

/** Dark or white text, whichever has the higher contrast (WCAG relative luminance). */
function readableOn(colour) {
  const [red, green, blue] = colour.map((part) => {
    const value = part / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.21 ? "#1f2430" : "#ffffff";
}
