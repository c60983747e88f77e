"""How a table of docs is written: rows of cells, estimates with their errors."""


def table(rows):
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def estimate(row, digits=2):
    return paired(row["mean"], row["se"], digits)


def paired(mean, se, digits=2):
    return f"{mean:.{digits}f} ({se:.{digits}f})"


def dotted(value, digits=3):
    """.957, as accuracies and errors are printed; 1.000 keeps its one."""
    return f"{value:.{digits}f}".removeprefix("0")
