"""The page on writing an attack: its code runs as it stands, and the attack keeps the contract."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "your-own-attack.md").read_text()
ATTACK, USE, CONTRACT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMES: dict[str, object] = {"__name__": __name__}
exec(ATTACK, NAMES)
exec(CONTRACT, NAMES)

TestSimBA = NAMES["TestSimBA"]


def test_the_search_is_as_short_as_the_page_says() -> None:
    assert len(ATTACK[ATTACK.index("    def search") :].strip().splitlines()) <= 20


@pytest.mark.unchecked
def test_it_fools_the_network_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    exec(USE, NAMES)
    clean, attacked = (int(line.split()[-1].rstrip("%")) for line in capsys.readouterr().out.splitlines()[-2:])
    assert clean > 80 and attacked < clean - 20
