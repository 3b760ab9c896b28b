set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q -y --no-install-recommends install ca-certificates git gettext-base less unzip
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/*.log /var/log/apt
update-ca-certificates
groupadd --gid 1000 jovyan
useradd --uid 1000 --gid 1000 --create-home --no-log-init --shell /bin/bash jovyan
python3 -m venv /srv/venv
/srv/venv/bin/pip install --quiet --upgrade pip
/srv/venv/bin/pip install --quiet 'jupyterlab>=4.5,<5' 'notebook>=7.5,<8' 'ipywidgets>=8,<9'
chown -R 1000:1000 /srv/venv
printf 'export PATH="$HOME/.local/bin:/srv/venv/bin:$PATH"\n' > /etc/profile.d/prebinder.sh
