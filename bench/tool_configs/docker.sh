# What docker's daemon makes for its bridge, and for a second network.
# interfaces: eth0=192.0.2.10/24
# backend: legacy
# saves: v4
# counters: yes
mount -t cgroup2 none /sys/fs/cgroup
mount -o remount,bind,ro /sys/fs/cgroup
mkdir -p /run/docker-data
dockerd --storage-driver=vfs --data-root=/run/docker-data > /run/docker.log 2>&1 &
for _ in $(seq 30); do if docker info > /dev/null 2>&1; then break; fi; sleep 0.5; done
docker network create -o com.docker.network.bridge.name=apart --subnet 172.30.0.0/24 apart > /dev/null || { tail -5 /run/docker.log; exit 1; }
docker network create --subnet 172.31.0.0/24 -o com.docker.network.bridge.name=inside --internal inside > /dev/null
