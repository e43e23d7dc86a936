// The heat map: one cell an operator, layers down, operators across, drawn by Bokeh. Operators in no layer are bars across the map.
//
// A map is told what to draw (`cells`: { operator, row, column, colour, mark, strong }) and says where the pointer is. It knows nothing of
// what the colours mean.

import { el } from "./dom.js";
import { inkOn } from "./colour.js";
import { token } from "./theme.js";

const M = Bokeh.Models;
const { Document } = Bokeh.require("document");

const FAINT = 0.16;
const GAP = 0.07;
const STYLES = ":host { --highlight-color: transparent } :host(.bk-Canvas) .bk-events, .bk-events { touch-action: auto !important; cursor: pointer }";

function fixed(places) {
  return new M.FixedTicker({ ticks: places });
}

function bare(options) {
  return new M.LinearAxis({
    axis_line_color: null, major_tick_line_color: null, minor_tick_line_color: null, major_label_text_color: token("--ink-2"),
    major_label_text_font: "system-ui, sans-serif", ...options,
  });
}

export class HeatMap {
  // `name` is read out; `events` has hover(operator | null, x, y), select(operator) and move(row step, column step).
  constructor(name, events) {
    this.events = events;
    this.box = el("div", { class: "map-box" });
    this.node = el("div", {
      class: "map", tabindex: "0", role: "application", "aria-roledescription": "heat map", "aria-label": name,
      "aria-describedby": "map-live",
    }, this.box);
    this.node.addEventListener("pointermove", event => this.hover(event));
    this.node.addEventListener("pointerleave", () => events.hover(null));
    this.node.addEventListener("click", event => {
      const operator = this.at(event);
      if (operator !== null) events.select(operator);
    });
  }

  // Builds the plot of a grid: { rows: [[label, layer]], columns: [[group, label]] }.
  async build(grid) {
    const serial = (this.serial ?? 0) + 1;
    this.serial = serial;
    this.grid = grid;
    const width = this.node.clientWidth || 600;
    const narrow = width < 520;
    const columns = Math.max(grid.columns.length, 1);
    const size = narrow ? 10 : 11;
    const many = grid.rows.length > 48;
    const height = many ? 15 : narrow ? 17 : grid.rows.length > 40 ? 18 : grid.rows.length > 20 ? 20 : 26;
    const longest = Math.max(0, ...grid.columns.map(([, label]) => label.length));
    const above = grid.columns.length ? Math.round(longest * size * 0.56) + 14 + (this.groups().length ? 18 : 0) : 6;
    const layerLabels = grid.rows.map(([label, layer]) => layer === null ? "" : label);
    const left = Math.max(...layerLabels.map(label => label.length), 1) * size * 0.62 + 12;
    this.cells = new M.ColumnDataSource({ data: empty() });
    this.focus = new M.ColumnDataSource({ data: { x: [], y: [], w: [] } });
    const plot = new M.Plot({
      x_range: new M.Range1d({ start: 0, end: columns }), y_range: new M.Range1d({ start: grid.rows.length, end: 0 }),
      toolbar_location: null, sizing_mode: "stretch_width", height: above + 4 + height * grid.rows.length,
      min_border_left: left, min_border_right: 1, min_border_top: above, min_border_bottom: 3, min_border: 0,
      outline_line_color: null, background_fill_color: null, border_fill_color: null, stylesheets: [STYLES],
    });
    plot.toolbar.logo = null;
    plot.add_layout(bare({
      ticker: fixed(grid.rows.map((_, k) => k + 0.5)), major_label_text_font_size: `${size}px`, major_label_standoff: 3,
      major_label_overrides: new Map(layerLabels.map((label, k) => [k + 0.5, label])),
    }), "left");
    if (grid.columns.length) this.columnAxes(plot, size);
    const ink = token("--ink");
    plot.add_glyph(new M.Rect({
      x: { field: "x" }, y: { field: "y" }, width: { field: "w" }, height: 1 - 2 * GAP, fill_color: { field: "colour" },
      fill_alpha: { field: "alpha" }, line_color: { field: "line" }, line_alpha: { field: "alpha" }, line_width: 1,
      hatch_pattern: { field: "hatch" }, hatch_color: token("--ink-2"), hatch_alpha: 0.55, hatch_scale: 7, hatch_weight: 1,
    }), this.cells);
    const text = { text_align: "center", text_baseline: "middle", text_alpha: { field: "alpha" }, text_color: { field: "ink" } };
    plot.add_glyph(new M.Text({
      x: { field: "x" }, y: { field: "y" }, text: { field: "mark" }, text_font_size: `${size + 1}px`, text_font_style: "bold",
      text_font: "system-ui, sans-serif", ...text,
    }), this.cells);
    plot.add_glyph(new M.Text({
      x: 0.12, y: { field: "y" }, text: { field: "label" }, text_font_size: `${size}px`, text_font: "system-ui, sans-serif", ...text,
      text_align: "left",
    }), this.cells);
    plot.add_glyph(new M.Rect({
      x: { field: "x" }, y: { field: "y" }, width: { field: "w" }, height: 1, fill_color: null, line_color: ink, line_width: 2.5,
    }), this.focus);
    this.plot = plot;
    const document_ = new Document();
    document_.add_root(plot);
    const host = el("div", { class: "map-plot" });
    const views = await Bokeh.embed.add_document_standalone(document_, host);
    if (serial !== this.serial) return;
    this.box.replaceChildren(host);
    this.view = views.get_one?.(plot) ?? views.roots?.[0] ?? views[0];
    if (this.last) this.draw(...this.last);
  }

  // Runs of neighbouring columns of one named group: [group, first, last].
  groups() {
    const found = [];
    this.grid.columns.forEach(([group], k) => {
      if (found.length && found.at(-1)[0] === group) found.at(-1)[2] = k;
      else found.push([group, k, k]);
    });
    return found.filter(([group]) => group);
  }

  columnAxes(plot, size) {
    const { columns } = this.grid;
    plot.add_layout(bare({
      ticker: fixed(columns.map((_, k) => k + 0.5)), major_label_orientation: "vertical", major_label_text_font_size: `${size}px`,
      major_label_standoff: 4, major_label_overrides: new Map(columns.map(([, label], k) => [k + 0.5, label])),
      major_label_policy: new M.AllLabels(),
    }), "above");
    const groups = this.groups();
    if (!groups.length) return;
    plot.add_layout(bare({
      ticker: fixed(groups.map(([, a, b]) => (a + b + 1) / 2)), major_label_text_font_size: `${size}px`, major_label_standoff: 2,
      major_label_text_font_style: "bold", major_label_policy: new M.AllLabels(),
      major_label_overrides: new Map(groups.map(([group, a, b]) => [(a + b + 1) / 2, group])),
    }), "above");
    const edges = new Set(groups.flatMap(([, a, b]) => [a, b + 1]).filter(edge => edge > 0 && edge < columns.length));
    for (const edge of edges) {
      plot.add_layout(new M.Span({ location: edge, dimension: "height", line_color: token("--ink-3"), line_width: 1, line_dash: [1, 3], level: "underlay" }));
    }
  }

  draw(cells, selected) {
    this.last = [cells, selected];
    if (!this.cells) return;
    const columns = Math.max(this.grid.columns.length, 1);
    const data = empty();
    this.places = new Map();
    let focus = null;
    for (const cell of cells) {
      const whole = cell.column === null;
      const x = whole ? columns / 2 : cell.column + 0.5;
      const w = (whole ? columns : 1) - 2 * GAP;
      data.x.push(x);
      data.y.push(cell.row + 0.5);
      data.w.push(w);
      data.colour.push(cell.colour);
      data.line.push(cell.colour.length > 7 ? token("--line-strong") : cell.colour);
      data.alpha.push(cell.strong ? 1 : FAINT);
      data.hatch.push(cell.hatch ? "right_diagonal_line" : " ");
      data.mark.push(cell.mark);
      data.label.push(whole ? this.grid.rows[cell.row][0] : "");
      data.ink.push(inkOn(cell.colour));
      this.places.set(`${cell.row} ${whole ? "" : cell.column}`, cell.operator);
      if (cell.operator === selected) focus = { x: [x], y: [cell.row + 0.5], w: [w + 2 * GAP] };
    }
    this.cells.data = data;
    this.focus.data = focus ?? { x: [], y: [], w: [] };
  }

  // The operator under the pointer, null outside of the cells.
  at(event) {
    const frame = this.view?.frame?.bbox;
    if (!frame || !this.places) return null;
    const box = this.box.getBoundingClientRect();
    const columns = Math.max(this.grid.columns.length, 1);
    const column = Math.floor((event.clientX - box.left - frame.left) / frame.width * columns);
    const row = Math.floor((event.clientY - box.top - frame.top) / frame.height * this.grid.rows.length);
    if (column < 0 || column >= columns) return null;
    return this.places.get(`${row} ${column}`) ?? this.places.get(`${row} `) ?? null;
  }

  hover(event) {
    if (event.pointerType === "touch") return;
    this.events.hover(this.at(event), event.clientX, event.clientY);
  }
}

function empty() {
  return { x: [], y: [], w: [], colour: [], line: [], alpha: [], hatch: [], mark: [], label: [], ink: [] };
}
