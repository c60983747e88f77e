// Sets the formulas of a page, and marks the cells of tables that hold numbers.
document$.subscribe(({ body }) => {
  renderMathInElement(body, {
    delimiters: [
      { left: "\\[", right: "\\]", display: true },
      { left: "\\(", right: "\\)", display: false },
    ],
  });
  for (const cell of body.querySelectorAll("td")) {
    if (/^[-+]?[\d.,]+%?( [\w%/]+)?( \([^a-z]*( \w+)?\))?$/.test(cell.textContent.trim())) cell.classList.add("number");
  }
});
