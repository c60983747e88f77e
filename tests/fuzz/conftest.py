"""Says at the end how many calls with wrong arguments were tried."""


def pytest_terminal_summary(terminalreporter):
    passed = terminalreporter.stats.get("passed", [])
    tried = sum(n for report in passed for name, n in getattr(report, "user_properties", ()) if name == "tried")
    if tried:
        terminalreporter.write_line(f"{tried} calls with wrong arguments were tried")
