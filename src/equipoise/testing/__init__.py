"""Contract tests for what users add: inherit the class, give it a fixture, and pytest runs every promise as a test.

class TestSimBA(AttackContract):
@pytest.fixture
def attack(self):
return SimBA(Ball("linf", 0.1))
"""

from equipoise.testing.attacks import AttackContract

__all__ = ["AttackContract"]
