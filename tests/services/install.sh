#!/bin/sh
# Installs the real services that the slow tests start: PostgreSQL, SLURM, an S3 server and a browser (Debian, as root).
# A test whose service is missing is skipped and names what it lacks.
set -eu
export DEBIAN_FRONTEND=noninteractive
mkdir -p /etc/postgresql-common
echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf  # the tests start clusters of their own
apt-get update
command -v npm > /dev/null || apt-get install --yes --no-install-recommends npm
apt-get install --yes --no-install-recommends chromium munge postgresql slurm-wlm
npm install --global s3rver
