// The chart in an operator's panel: error, bound and the reference's own error at each measured step, on a logarithmic scale.

import { el } from "./dom.js";
import { number } from "./format.js";
import { token } from "./theme.js";

const M = Bokeh.Models;
const { Document } = Bokeh.require("document");

const NONE = { axis_line_color: null, major_tick_line_color: null, minor_tick_line_color: null };

// `measures` have step, error, bound and source; those without numbers are left out. Null where fewer than one is left.
export function errorChart(measures, label) {
  const found = measures.filter(m => m.error !== null && m.bound !== null && Number.isFinite(m.bound)).sort((a, b) => a.step - b.step);
  const numbers = found.flatMap(m => [m.error, m.bound, m.source]).filter(n => n > 0 && Number.isFinite(n));
  if (!found.length || !numbers.length) return null;
  const low = 10 ** (Math.floor(Math.log10(Math.min(...numbers)) * 2) / 2 - 0.15);
  const high = 10 ** (Math.ceil(Math.log10(Math.max(...numbers)) * 2) / 2 + 0.15);
  const clamp = n => Math.min(Math.max(n ?? low, low), high);
  const steps = found.map(m => m.step);
  const source = new M.ColumnDataSource({ data: {
    step: steps, error: found.map(m => clamp(m.error)), bound: found.map(m => clamp(m.bound)), source: found.map(m => clamp(m.source)),
    colour: found.map(m => m.error > m.bound ? token("--fail") : token("--pass")),
  } });
  const text = { major_label_text_color: token("--ink-2"), major_label_text_font: "system-ui, sans-serif", major_label_text_font_size: "11px" };
  const plot = new M.Plot({
    x_range: new M.Range1d({ start: Math.min(...steps) - 0.6, end: Math.max(...steps) + 0.6 }), x_scale: new M.LinearScale(),
    y_range: new M.Range1d({ start: low, end: high }), y_scale: new M.LogScale(), toolbar_location: null, sizing_mode: "stretch_width",
    height: 170, min_border: 4, outline_line_color: null, background_fill_color: null, border_fill_color: null,
  });
  plot.toolbar.logo = null;
  const ticks = [...new Set(steps)];
  const every = Math.ceil(ticks.length / 12);
  plot.add_layout(new M.LinearAxis({ ...NONE, ...text, ticker: new M.FixedTicker({ ticks: ticks.filter((_, k) => k % every === 0) }),
    axis_label: "step", axis_label_text_color: token("--ink-2"), axis_label_text_font: "system-ui, sans-serif", axis_label_text_font_size: "11px", axis_label_text_font_style: "normal",
  }), "below");
  const decades = [];
  for (let d = Math.ceil(Math.log10(low)); d <= Math.log10(high); d += 1) decades.push(10 ** d);
  const ticker = new M.FixedTicker({ ticks: decades.length ? decades : [low, high] });
  plot.add_layout(new M.LinearAxis({ ...NONE, ...text, ticker, major_label_overrides: new Map((decades.length ? decades : [low, high]).map(n => [n, number(n)])) }), "left");
  plot.add_layout(new M.Grid({ dimension: 1, ticker, grid_line_color: token("--line") }));
  const line = (field, colour, dash) => {
    plot.add_glyph(new M.Line({ x: { field: "step" }, y: { field }, line_color: colour, line_width: 1.5, line_dash: dash }), source);
  };
  line("bound", token("--ink"), [5, 4]);
  line("source", token("--ink-3"), [1, 3]);
  line("error", token("--pass"), []);
  plot.add_glyph(new M.Scatter({ x: { field: "step" }, y: { field: "bound" }, marker: "dash", size: 13, line_color: token("--ink"), line_width: 2, fill_color: null }), source);
  plot.add_glyph(new M.Scatter({ x: { field: "step" }, y: { field: "source" }, marker: "circle", size: 5, line_color: token("--ink-3"), fill_color: token("--surface") }), source);
  plot.add_glyph(new M.Scatter({ x: { field: "step" }, y: { field: "error" }, marker: "circle", size: 8, line_color: token("--surface"), fill_color: { field: "colour" } }), source);
  const host = el("div", { class: "chart", role: "img", "aria-label": label });
  const document_ = new Document();
  document_.add_root(plot);
  Bokeh.embed.add_document_standalone(document_, host);
  return el("figure", {}, host, el("figcaption", { class: "chart-key" },
    el("span", {}, el("i", { class: "dot" }), "error"), el("span", {}, el("i", { class: "dash" }), "tolerance"), el("span", {}, el("i", { class: "ring" }), "the reference’s own error")));
}
