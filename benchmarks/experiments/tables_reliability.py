"""Tables of what was done to runs, and of steps beside busy processes."""

from cells import table


def faults(record, recipe):
    rows = [["kind of fault", "tried", "survived", "lost"]]
    rows += [[r["kind"], r["tried"], r["survived"], r["lost"]] for r in record["rows"]]
    total = [sum(r[key] for r in record["rows"]) for key in ("tried", "survived", "lost")]
    return table([*rows, ["all", *total]])


def load(record, recipe):
    neighbours = list(dict.fromkeys(r["neighbours"] for r in record["rows"]))
    cells = {(r["choice"], r["neighbours"]): r for r in record["rows"]}
    heads = ["alone" if n == 0 else f"beside {n} busy" for n in neighbours]

    def cell(r):
        if r["steps"] < 5:
            return f"{r['steps']} steps in {record['rounds'] * record['seconds']:g} s"
        return f"{r['ms']:.0f} ({r['low']:.0f} to {r['high']:.0f})"

    quiet = record["load_before"] <= 0.5
    told = "" if quiet else f"\n\nThe machine was not quiet (load {record['load_before']:.0f}): not to be relied on."
    rows = [["ms a step, median (quartiles)", *heads]]
    for choice in dict.fromkeys(r["choice"] for r in record["rows"]):
        rows.append([choice, *(cell(cells[choice, n]) for n in neighbours)])
    return table(rows) + told
