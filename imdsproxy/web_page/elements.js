"use strict";
// Finding, changing and making elements. Text enters a page as a text node only.
const byId = (id) => document.getElementById(id);
const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const complete = (node, attributes, children) => {
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const make = (name, attributes, ...children) => complete(document.createElement(name), attributes, children);
const draw = (name, attributes, ...children) => complete(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
const clock = (date) => date.toLocaleTimeString("en-GB");

