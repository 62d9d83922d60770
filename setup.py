"""Puts the sweeps of configs/ into the wheel, where `phasefront examples` finds them; the rest is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithExamples(build_py):
    """Copies configs/ to orchestrator/examples. An editable installation reads configs/ itself."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for path in sorted(Path("configs").rglob("*.yaml")):
            target = Path(self.build_lib, "orchestrator", "examples", path.relative_to("configs"))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(path), str(target))


setup(cmdclass={"build_py": WithExamples})
