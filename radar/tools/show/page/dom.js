"use strict";
// Elements and words. Text of the model goes in as text nodes only, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const html = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const stepOf = (count) => `var(--step-${Math.max(0, Math.min(count, 8) - 1)})`;

/** A probability in percent; small ones keep a digit that says something. */
function percent(p) {
  if (p > 0.9995) return "100";
  if (p >= 0.995) return (100 * p).toFixed(1);
  if (p >= 0.0995) return (100 * p).toFixed(0);
  return p >= 0.0005 ? (100 * p).toFixed(1) : "<0.1";
}

/** A token's text with its spaces and line ends to be seen. */
const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");
const nameOf = (token) => visible(data.names[token]);
