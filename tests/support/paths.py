"""Where things are: the repository, the package under test, and what lies in tests/.

The package is found by import, since the tests may run against an installed one.
"""

from pathlib import Path

import kie4o

PACKAGE = Path(kie4o.__file__).parent
IMPORT_ROOT = PACKAGE.parent  # the PYTHONPATH or working directory of a child process

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
FIXTURES = TESTS / "fixtures"
TLS = FIXTURES / "tls"

REPOSITORY = TESTS.parent
BENCHMARKS = REPOSITORY / "benchmarks"
DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
