"use strict";
(() => {
  const table = document.getElementById("plans");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[1].cells];
  const asWritten = [...body.rows];

  // #sort=KEY and #sort=-KEY say how the table is sorted, so that a link keeps it.
  function sort() {
    const wanted = decodeURIComponent(location.hash).match(/^#sort=(-?)(.+)$/);
    const column = wanted ? heads.findIndex((head) => head.dataset.key === wanted[2]) : -1;
    for (const head of heads) head.removeAttribute("aria-sort");
    if (column < 0) return;
    const sign = wanted[1] ? -1 : 1;
    heads[column].setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const isText = wanted[2] === "plan";
    const key = (row) => (isText ? row.cells[column].dataset.value : parseFloat(row.cells[column].dataset.value));
    const compare = (one, other) => {
      const [a, b] = [key(one), key(other)];
      if (isText) return sign * a.localeCompare(b);
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // no number: last
      return sign * (a - b);
    };
    body.append(...[...asWritten].sort(compare));
  }
  heads.forEach((head) =>
    head.querySelector("button").addEventListener("click", () => {
      const turn = head.getAttribute("aria-sort") === "ascending" ? "-" : "";
      location.hash = `sort=${turn}${head.dataset.key}`;
    })
  );
  addEventListener("hashchange", sort);
  sort();

  document.getElementById("filter").addEventListener("input", (event) => {
    const part = event.target.value.trim().toLowerCase();
    for (const row of asWritten) row.hidden = !row.cells[0].dataset.value.toLowerCase().includes(part);
  });

  const texts = JSON.parse(document.getElementById("texts")?.textContent ?? "{}");
  for (const select of document.querySelectorAll("select[data-slot]")) {
    select.addEventListener("change", () => {
      for (const answer of document.querySelectorAll(`.answers > [data-slot="${select.dataset.slot}"]`)) {
        const [text, said] = texts[select.value][answer.dataset.set][answer.dataset.number];
        answer.querySelector(".plan").textContent = select.value;
        answer.querySelector(".said").textContent = said;
        answer.querySelector(".text").textContent = text;
      }
    });
  }
})();
