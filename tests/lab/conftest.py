from tests.lab.plugin import lab, pytest_runtest_makereport

__all__ = ["lab", "pytest_runtest_makereport"]
