"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const specs = read("figures");
  const themes = read("themes");
  const root = document.documentElement;
  const darkSystem = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme || (darkSystem.matches ? "dark" : "light");

  // ---- figures: drawn when they come near the screen, and again when the theme changes

  const drawn = new Set();

  const draw = async (figure) => {
    drawn.add(figure);
    const plot = figure.querySelector(".plot");
    const config = structuredClone(themes[theme()]);
    config.background = "transparent";
    if (plot.clientWidth < 480) {
      config.legend.columns = 2;
      config.axis.labelLimit = 90;
    }
    const spec = {
      ...specs[figure.dataset.figure],
      width: "container",
      autosize: { type: "fit-x", contains: "padding" },
      padding: 2,
    };
    const options = { actions: false, renderer: "svg", config };
    // Vega gives its own element a role and each mark a name; the image around it is one thing.
    const result = await vegaEmbed(plot.firstElementChild, spec, options);
    figure.vegaView = result.view;
    figure.dataset.drawn = theme();
  };

  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
      }
    },
    { rootMargin: "400px" },
  );
  document.querySelectorAll(".chart").forEach((figure) => near.observe(figure));

  const button = document.getElementById("theme");
  const redraw = () => {
    button.textContent = theme() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `${button.textContent} colours`);
    drawn.forEach(draw);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    redraw();
  });
  darkSystem.addEventListener("change", redraw);
  redraw();

  // ---- tables: a heading's button sorts by its column

  const value = (row, column) => row.cells[column].dataset.value;
  const compare = (numeric) => (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // empty cells come last
    return numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
  };

  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const rows = [...body.rows];
        const numeric = rows.every((row) => !Number.isNaN(Number(value(row, column))));
        const first = numeric ? "descending" : "ascending";
        const other = numeric ? "ascending" : "descending";
        const next = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((each) => each.setAttribute("aria-sort", each === head ? next : "none"));
        const order = compare(numeric);
        const sign = next === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          const [x, y] = [value(a, column), value(b, column)];
          return x === "" || y === "" ? order(x, y) : sign * order(x, y);
        });
        body.append(...rows);
      });
    });
  });

  // ---- the data behind a figure, as tables and as files

  const tabulate = (rows) => {
    const columns = [...new Set(rows.flatMap(Object.keys))];
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const column of columns) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = column;
      head.append(cell);
    }
    const body = table.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      for (const column of columns) line.insertCell().textContent = row[column] ?? "";
    }
    return table;
  };

  const save = async (figure, kind) => {
    const link = document.createElement("a");
    link.download = `${figure.dataset.figure}.${kind}`;
    if (kind === "svg") {
      const blob = new Blob([await figure.vegaView.toSVG()], { type: "image/svg+xml" });
      link.href = URL.createObjectURL(blob);
    } else {
      link.href = await figure.vegaView.toImageURL("png", 2);
    }
    link.click();
    if (kind === "svg") URL.revokeObjectURL(link.href);
  };

  document.querySelectorAll(".chart .data").forEach((details) => {
    const figure = details.closest(".chart");
    const place = details.querySelector(".scroll");
    details.addEventListener("toggle", () => {
      if (!details.open || place.childElementCount) return;
      const datasets = Object.values(specs[figure.dataset.figure].datasets);
      place.append(...datasets.map(tabulate));
    });
    for (const saver of details.querySelectorAll("[data-save]")) {
      saver.addEventListener("click", () => save(figure, saver.dataset.save));
    }
  });

  document.querySelectorAll("[data-open]").forEach((opener) => {
    opener.addEventListener("click", () => {
      const open = opener.dataset.open === "true";
      document.querySelectorAll(".layer").forEach((layer) => (layer.open = open));
    });
  });
})();
