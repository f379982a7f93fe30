"""Packaging of nnSSL. Tool tables and the build requirement are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "nnssl" / "__init__.py").read_text())[1]
DICOM = ["pydicom>=3.0", "highdicom>=0.25"]  # SEG, RTSTRUCT, multi-frame images

setup(
    name="nnssl",
    version=VERSION,
    description="Self-supervised pre-training as trainers of an unmodified nnU-Net v2",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Healthcare Industry",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
    # external_trainers has no __init__.py: nnU-Net's search must see exactly one file there.
    packages=[
        *find_packages(include=["nnssl", "nnssl.*"]),
        "nnssl.external_trainers",
        "nnssl_configs",
    ],
    package_data={"nnssl": ["py.typed", "**/*.j2"], "nnssl_configs": ["**/*.yaml"]},
    include_package_data=False,
    install_requires=[
        "nnunetv2>=2.6.2,<2.9",
        "torch>=2.6",  # torch.serialization.safe_globals with names
        "numpy>=1.24",
        "batchgenerators>=0.25.1",
        "batchgeneratorsv2>=0.3.0",
        "dynamic-network-architectures>=0.4.1,<0.5",
        "acvl-utils>=0.2.3,<0.3",
        "SimpleITK>=2.2.1",
        "nibabel>=4.0",
        "blosc2>=3.0.0b1",
        "PyYAML>=6.0",
        "safetensors>=0.4",
        "annotated-types>=0.6",
        "typing_extensions>=4.6",
        "pydantic>=2.5",
        "scikit-image>=0.19",
        "scipy>=1.12",  # isotonic_regression
        "pandas>=1.5",
        "pillow>=9.0",
        "scikit-learn>=1.3",  # k-means of the clustering targets
        "jinja2>=3.0",
        "tqdm>=4.60",
        "matplotlib>=3.5",
    ],
    extras_require={
        "dicom": DICOM,
        "dino": ["timm>=1.0"],
        "hub": ["huggingface_hub>=0.20"],
        "slurm": ["submitit>=1.5"],
        "test": [
            *DICOM,
            "huggingface_hub>=0.20",
            "lightly>=1.5",
            "mypy>=1.10",
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "statsmodels>=0.14",
            "submitit>=1.5",
            "surface-distance>=0.1",
            "absl-py",  # of surface-distance, which does not say so
            "types-PyYAML",
        ],
    },
    entry_points={
        "console_scripts": [
            "nnssl_register = nnssl.cli.register:main",
            "nnssl_trainers = nnssl.cli.trainers:main",
            "nnssl_doctor = nnssl.cli.doctor:main",
            "nnssl_convert = nnssl.cli.convert:main",
            "nnssl_cases = nnssl.cli.cases:main",
            "nnssl_plan_small = nnssl.cli.plan_small:main",
            "nnssl_plan_like = nnssl.cli.plan_like:main",
            "nnssl_plan_resnet50 = nnssl.cli.plan_resnet50:main",
            "nnssl_preprocess_unlabelled = nnssl.cli.preprocess_unlabelled:main",
            "nnssl_pool = nnssl.cli.pool:main",
            "nnssl_phantom = nnssl.cli.phantom:main",
            "nnssl_probe = nnssl.cli.probe:main",
            "nnssl_study = nnssl.cli.study:main",
            "nnssl_cluster = nnssl.cli.cluster:main",
            "nnssl_estimate = nnssl.cli.estimate:main",
            "nnssl_inspect = nnssl.cli.inspect:main",
            "nnssl_export = nnssl.cli.export:main",
            "nnssl_features = nnssl.cli.features:main",
            "nnssl_runs = nnssl.cli.runs:main",
            "nnssl_pseudo_label = nnssl.cli.pseudo_label:main",
        ],
    },
)
