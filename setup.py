"""What pyproject.toml cannot say: three folders of the checkout become data of the package `kbrain_galaxy`."""

from setuptools import find_packages, setup

DATA_FOLDERS = ("tools", "workflows", "requirements")

setup(
    packages=[
        *find_packages(include=["kbrain_core*", "kbrain_galaxy*"]),
        *(f"kbrain_galaxy.{name}" for name in DATA_FOLDERS),
    ],
    package_dir={f"kbrain_galaxy.{name}": name for name in DATA_FOLDERS},
    package_data={
        "kbrain_core": ["py.typed", "templates/*", "visualization/kneuroviz/**"],
        "kbrain_galaxy": ["py.typed", "galaxy_modules/*", "templates/*"],
        "kbrain_galaxy.tools": ["**", ".shed.yml"],
        "kbrain_galaxy.workflows": ["**"],
        "kbrain_galaxy.requirements": ["galaxy.txt", "planemo.txt"],
    },
)
