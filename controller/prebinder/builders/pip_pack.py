"""A repo2docker build pack for repositories that need Python and `requirements.txt`, nothing more.

It needs no conda: builds take seconds and work where only the package index can be reached. It stands on any Debian
or Ubuntu with Python 3 and its venv module; on Prebinder's own base image (`onemachine/base_image.py`) Jupyter is
there already.

The order of layers is the point: what is the same for all repositories first, then the requirements, then the content.
A commit that changed only content makes only its content layer anew.

Understood: `requirements.txt`, `apt.txt`, `postBuild` and `start`, in the root, `binder/` or `.binder/`, as everywhere
in repo2docker. A repository that asks for conda, R, Julia or Nix is refused with a clear message (`UnsupportedPack`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import jinja2
from repo2docker.buildpacks.base import BaseImage
from repo2docker.utils import is_local_pip_requirement

VENV = "/srv/venv"

# What repo2docker's other packs look for, and what they need.
_OTHERS = {
    "environment.yml": "conda",
    "environment.yaml": "conda",
    "install.R": "R",
    "DESCRIPTION": "R",
    "Project.toml": "Julia",
    "JuliaProject.toml": "Julia",
    "REQUIRE": "Julia",
    "default.nix": "Nix",
    "Pipfile": "pipenv",
    "Pipfile.lock": "pipenv",
}

_TEMPLATE = jinja2.Template(
    """\
FROM {{ base_image }}
USER root
ARG NB_USER
ARG NB_UID
ARG REPO_DIR=/home/${NB_USER}
ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 LC_ALL=C.UTF-8 SHELL=/bin/bash PYTHONUNBUFFERED=1 \\
    USER=${NB_USER} HOME=/home/${NB_USER} REPO_DIR=${REPO_DIR} VIRTUAL_ENV={{ venv }} \\
    PATH=/home/${NB_USER}/.local/bin:${REPO_DIR}/.local/bin:{{ venv }}/bin:${PATH}

# The same for every repository. On Prebinder's own base image user and Jupyter are there and this takes no time.
RUN { id ${NB_UID} >/dev/null 2>&1 \\
   || useradd --uid ${NB_UID} --user-group --create-home --no-log-init --shell /bin/bash ${NB_USER}; } \\
 && { test -x {{ venv }}/bin/jupyter-lab || { \\
      python3 -m venv {{ venv }} \\
   && {{ venv }}/bin/pip install --quiet --no-cache-dir jupyterlab notebook \\
   && chown -R ${NB_UID}:${NB_UID} {{ venv }} \\
   && printf 'export PATH="$HOME/.local/bin:{{ venv }}/bin:$PATH"\\n' > /etc/profile.d/prebinder.sh; }; } \\
 && install -d -o ${NB_UID} -g ${NB_UID} ${REPO_DIR}
COPY --chmod=0755 python3-login repo2docker-entrypoint /usr/local/bin/
WORKDIR ${REPO_DIR}
EXPOSE 8888
ENTRYPOINT ["/usr/local/bin/repo2docker-entrypoint"]
CMD ["jupyter", "lab", "--ip", "0.0.0.0"]
{%- for user, script in preassemble %}
USER {{ user }}
RUN {{ script }}
{%- endfor %}
USER ${NB_UID}
{%- if requirements and isolated %}
COPY --chown={{ uid }}:{{ uid }} ["src/{{ requirements }}", "/tmp/requirements.txt"]
RUN pip install --no-cache-dir --disable-pip-version-check -r /tmp/requirements.txt
{%- endif %}

# From here on all is made anew for each commit: as few layers as can be.
COPY --chown={{ uid }}:{{ uid }} src/ ${REPO_DIR}/
{%- if requirements and not isolated %}
RUN pip install --no-cache-dir --disable-pip-version-check -r {{ requirements }}
{%- endif %}
{%- for script in post_build %}
RUN chmod +x {{ script }} && ./{{ script }}
{%- endfor %}
{%- if start %}
RUN chmod +x "{{ start }}"
ENV R2D_ENTRYPOINT="{{ start }}"
{%- endif %}
LABEL{% for key, value in labels %} {{ key }}={{ value }}{% endfor %}
{{ appendix }}
"""
)


class UnsupportedPack(Exception):
    """The repository needs a build pack other than this one."""


class PipBuildPack(BaseImage):  # type: ignore[misc]  # repo2docker has no types
    """Python with pip alone."""

    def detect(self) -> bool:
        """Whether this pack builds the repository in the current directory: always, unless it asks for another.

        Raises UnsupportedPack when it asks for another.
        """
        for file, needs in _OTHERS.items():
            if Path(self.binder_path(file)).exists() and not self._requirements:
                raise UnsupportedPack(
                    f"{self.binder_path(file)} needs {needs}, and builds here use pip alone (build_pack: pip). "
                    "Add a requirements.txt, or ask the operator for build_pack: auto."
                )
        return True

    @cached_property
    def _requirements(self) -> str | None:
        path = self.binder_path("requirements.txt")
        return path if Path(path).is_file() else None

    def _isolated(self) -> bool:
        """Whether the requirements name nothing in the repository, so that they can be installed before its content."""
        if self._requirements is None:
            return True
        text = Path(self._requirements).read_text(encoding="utf-8", errors="replace")
        return not any(is_local_pip_requirement(line) for line in text.splitlines())

    def render(self, build_args: Mapping[str, str] | None = None) -> str:
        """The Dockerfile."""
        uid = (build_args or {}).get("NB_UID", "1000")
        dockerfile: str = _TEMPLATE.render(
            base_image=self.base_image,
            venv=VENV,
            uid=uid,
            preassemble=[(user, script.strip()) for user, script in self.get_preassemble_scripts()],
            requirements=self._requirements,
            isolated=self._isolated(),
            post_build=self.get_post_build_scripts(),
            start=self.get_start_script(),
            # Last, because the revision is among them: it must not make other layers anew.
            labels=[(key, _quoted(str(value))) for key, value in sorted(self.labels.items())],
            appendix=self.appendix,
        )
        return dockerfile


def _quoted(value: str) -> str:
    """A value for a Dockerfile's LABEL: quoted, nothing expanded."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'.replace("\n", " ")
