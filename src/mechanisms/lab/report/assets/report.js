// Plots in the page's colours, tables that sort, and the ledger's filter. Without it the pages still read.
(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");

  // ---- plots -------------------------------------------------------------------------------------------------------
  // Printing counts as light: the query asks for a screen.
  const dark = matchMedia("screen and (prefers-color-scheme: dark)");
  const pairs = JSON.parse(document.getElementById("theme").textContent).pairs;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // The figures are drawn with the light palette; a hexadecimal colour may carry its opacity in two more digits.
  const recolour = (value, index) => {
    if (Array.isArray(value)) return value.map((item) => recolour(item, index));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, recolour(item, index)]));
    }
    if (typeof value !== "string" || value[0] !== "#") return value;
    const pair = pairs.find(([light]) => value.toLowerCase().startsWith(light));
    return pair ? pair[index] + value.slice(7) : value;
  };

  const themed = (figure, index) => {
    const axis = {
      gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line"), tickcolor: colour("--line"),
      automargin: true, zerolinewidth: 1, title: { font: { size: 12.5 } }, tickfont: { size: 12 },
    };
    const family = getComputedStyle(document.body).fontFamily;
    const label = {
      bgcolor: colour("--raised"), bordercolor: colour("--line"), align: "left",
      font: { color: colour("--ink"), size: 13, family },
    };
    const template = {
      layout: {
        font: { color: colour("--soft"), family, size: 13 },
        colorway: pairs.slice(1).map((pair) => pair[index]),
        xaxis: axis, yaxis: axis, hoverlabel: label, legend: { font: { color: colour("--ink") } },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--line"), activecolor: colour("--soft") },
        margin: { l: 12, r: 16, t: 24, b: 12 },
      },
    };
    const { data, layout = {}, frames } = recolour(figure, index);
    const { width, ...rest } = layout;
    return {
      data, frames,
      layout: { ...rest, template, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" },
      // Newer versions of plotly.js offer to upload a chart: not from here.
      config: {
        responsive: true, displaylogo: false, typesetMath: false, showSendToCloud: false, plotlyServerURL: "",
        modeBarButtonsToRemove: ["select2d", "lasso2d"],
      },
    };
  };

  const plots = window.Plotly
    ? [...document.querySelectorAll("figure.plot")].map((figure) => ({
        canvas: figure.querySelector(".canvas"),
        figure: JSON.parse(figure.querySelector("script").textContent),
      }))
    : [];
  // A page of A4 less its margins is about 690 pixels wide; the colours of the print style hold only once it applies.
  // The scheme changes while a page is printed, before or after its events: whatever draws looks whether it is on paper.
  const draw = () => {
    const paper = root.classList.contains("print");
    for (const { canvas, figure } of plots) {
      const { data, layout, frames, config } = themed(figure, dark.matches && !paper ? 1 : 0);
      Plotly.react(canvas, { data, frames, config, layout: paper ? { ...layout, width: 660, autosize: false } : layout });
    }
  };
  draw();
  dark.addEventListener("change", draw);
  for (const [event, paper] of [["beforeprint", true], ["afterprint", false]]) {
    window.addEventListener(event, () => {
      root.classList.toggle("print", paper);
      draw();
    });
  }

  // ---- tables ------------------------------------------------------------------------------------------------------
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if ("plain" in head.dataset) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
        rows.sort(([a], [b]) => {
          const order = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
          // Missing numbers stay at the end, whichever way the rest goes.
          if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
          return down ? -order : order;
        });
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }

  // ---- filter ------------------------------------------------------------------------------------------------------
  const form = document.querySelector("form.filters");
  const rows = [...document.querySelectorAll("table.ledger tbody tr")];
  if (form && rows.length) {
    const tiles = [...form.querySelectorAll("button.tile")];
    const empty = document.querySelector(".empty");
    const apply = () => {
      const verdicts = tiles.filter((tile) => tile.ariaPressed === "true").map((tile) => tile.dataset.verdict);
      const topic = form.elements.topic.value;
      const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const fits = (!verdicts.length || verdicts.includes(row.dataset.verdict))
          && (!topic || row.dataset.topic === topic) && words.every((word) => text.includes(word));
        row.hidden = !fits;
        shown += fits;
      }
      form.querySelector(".shown").value = shown === rows.length ? `${shown} claims` : `${shown} of ${rows.length} claims`;
      empty.hidden = shown > 0;
    };
    for (const tile of tiles) {
      tile.addEventListener("click", () => {
        tile.ariaPressed = tile.ariaPressed === "true" ? "false" : "true";
        apply();
      });
    }
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", apply);
    empty.querySelector("button").addEventListener("click", () => {
      form.reset();
      tiles.forEach((tile) => { tile.ariaPressed = "false"; });
      apply();
    });
    apply();
  }
})();
