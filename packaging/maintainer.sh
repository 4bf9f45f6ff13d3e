#!/bin/sh
#
# What the maintainer scripts of both packages share: packaging/build puts it in front of each. POSIX sh, and every
# function may run again at any time, also where systemd is not installed or not process 1 (a container, a chroot).

set -e

have() { command -v "$1" >/dev/null 2>&1; }
systemd_is_running() { [ -d /run/systemd/system ]; }

reload_units() { ! systemd_is_running || systemctl daemon-reload || true; }

# The user of the service and its groups, as sysusers.d/shiparr.conf has them. Docker may come later: it takes the group.
make_account() {
    if have systemd-sysusers && [ -e /usr/lib/sysusers.d/shiparr.conf ]; then
        systemd-sysusers shiparr.conf
        return
    fi
    for group in docker shiparr; do
        getent group "$group" >/dev/null || groupadd --system "$group"
    done
    getent passwd shiparr >/dev/null || useradd --system --gid shiparr --no-create-home --home-dir /var/lib/shiparr \
        --shell "$(command -v nologin || echo /bin/false)" --comment Shiparr shiparr
    usermod --append --groups docker shiparr
}

# As tmpfiles.d/shiparr.conf has them.
make_folders() {
    if [ -L /var/lib/shiparr ]; then
        echo "/var/lib/shiparr is a link, and systemd starts no service on one: mount the other folder there in its place (mount --bind)." >&2
    fi
    if have systemd-tmpfiles; then
        systemd-tmpfiles --create shiparr.conf
        return
    fi
    # The folder itself, and never what lies in it.
    install -d -m 0755 -o shiparr -g shiparr /run/shiparr
    install -d -m 0750 -o shiparr -g shiparr /var/lib/shiparr
}

# After an upgrade the service goes on as the new version, where it runs or is just about to. No deployment is cut off: the
# restart waits for what is being deployed. No request is refused: shiparr.socket stays as it is and holds new connections
# meanwhile, so a change of that unit itself counts from its own next restart.
restart_what_runs() {
    systemd_is_running || return 0
    reload_units
    case "$(systemctl show --property=ActiveState shiparr.service)" in
    *=active | *=reloading | *=activating) ;;
    *)
        echo "shiparr.service does not run, and stays so. To start it: systemctl start shiparr.socket shiparr.service"
        return 0
        ;;
    esac
    # Debian's asks the administrator's policy-rc.d first.
    set -- systemctl restart shiparr.service
    ! have deb-systemd-invoke || set -- deb-systemd-invoke restart shiparr.service
    # By its path: an older one in /usr/local/bin may go first, and know nothing of this.
    if ! /usr/bin/shiparr hold -- "$@"; then
        echo "shiparr.service could not be restarted as the new version: see systemctl status shiparr.service" >&2
    fi
}

# Of an installation from source, say.
warn_of_another_program() {
    if [ -e /usr/local/bin/shiparr ]; then
        echo "/usr/local/bin/shiparr is not of this package, and most shells find it first: remove it once nothing runs it." >&2
    fi
}

say_how_to_start() {
    cat <<END
Shiparr is installed, and neither enabled nor started. Describe what to deploy in /etc/shiparr/projects (an example is there), then:
    systemctl enable --now shiparr.socket shiparr.service
END
}

# Before a removal. Stacks go on running, with the secrets that they mount.
stop_what_runs() {
    systemd_is_running || return 0
    # One request for both: the socket would start the service again.
    set -- systemctl stop shiparr.socket shiparr.service
    ! have deb-systemd-invoke || set -- deb-systemd-invoke stop shiparr.socket shiparr.service
    "$@" || echo "shiparr could not be stopped: see systemctl status shiparr.socket shiparr.service" >&2
}
