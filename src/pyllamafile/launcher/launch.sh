#!/bin/sh
# A llamafile: a language model and the programs that run it. See: unzip -l THIS_FILE
# shellcheck shell=sh

# The template of the launch script: it finds the program for this system inside the file,
# unpacks it once into a cache directory, and becomes it. Of the comments only the second
# line survives rendering. The rules it keeps are in FORMAT.md; above all it never reads
# stdin, and every way through it ends in `exec` or `exit`.
#
# Names begin with lf_, because a name that the user has exported would change for the
# program. `command` passes over functions, which bash takes from the environment.
# No here-documents: some shells write them to a temporary file.

# zsh: split words, keep unmatched patterns.
[ -z "${ZSH_VERSION-}" ] || emulate sh 2>/dev/null
# bash takes these over from an exported SHELLOPTS.
set +eufC
unset IFS

# A poor PATH may lack the tools. The program gets the user's own back.
lf_path=${PATH-}
PATH=${PATH:+$PATH:}/usr/bin:/bin:/usr/sbin:/sbin

# No slash in `sh FILE`, where FILE may even come from PATH.
lf_self=$0
case $0 in
*/*) ;;
*) [ ! -f "./$0" ] && lf_self=$(command -v -- "$0") || lf_self=./$0 ;;
esac

lf_die() {
    printf '%s: %s\n' "$lf_self" "$1" >&2
    exit 1
}

# Which program? A translated shell on Apple Silicon says x86_64, and NetBSD names the
# board instead of the processor. A shell on Windows starts a Windows program by itself, so
# it comes here only when it was told to read the file, or when the file is too large for that.
lf_have='@NAMES@'
lf_host=$(command uname -sm)
case "$lf_host $lf_have" in
Darwin\ x86_64*macos-arm64*)
    [ "$(command sysctl -n hw.optional.arm64 2>/dev/null)" != 1 ] || lf_host='Darwin arm64'
    ;;
NetBSD\ evbarm*) lf_host="NetBSD $(command uname -p)" ;;
MINGW*windows-* | MSYS*windows-* | CYGWIN*windows-*)
    lf_die 'on Windows, start it as a program, without sh; from 4 GiB on, start the .exe beside it'
    ;;
esac
# The next line stands for as many as there are programs.
case $lf_host in
@UNAME@) lf_skip=@SKIP@ lf_count=@COUNT@ lf_size=@SIZE@ lf_name=@SHA256@ ;;
*) lf_die "there is no program for $lf_host in this file, only for: $lf_have" ;;
esac

# Trusted is a directory that is ours and that nobody else can write to, in one where nobody
# else can put another in its place: ours or root's, and unwritable to others, or sticky as
# /tmp is. A group of one's own (gid = uid) is nobody else. Arguments: the number of lines
# that `ls -dln . .. [PROGRAM]` printed, then its words: per line the mode, links, uid, gid,
# size, a date of as many words as the system likes, and the name. The program is dated 1980: who
# writes to it, without meaning to hide that, gives it another date.
lf_trusted() {
    lf_words=$((($# - 1) / $1))
    shift
    lf_owner=$3
    # posh has no -O.
    case $1 in
    drwx?-??-*) [ -O "$lf_dir" ] 2>/dev/null || [ "$3" = "$(command id -u)" ] ;;
    *) false ;;
    esac && shift "$lf_words" && case $1,$3 in
    d????-??-*,"$lf_owner" | d????-??-*,0 | d????????[tT]*,"$lf_owner" | d????????[tT]*,0) ;;
    d???????-*,"$lf_owner") [ "$3" = "$4" ] ;;
    *) false ;;
    esac && shift "$lf_words" && case $1,$3,$5,$6$7$8 in
    ,,,) ;;
    -rwx?-??-*,"$lf_owner,$lf_size,"*1980*) ;;
    *) false ;;
    esac
}

# Looks at BASE/run [and PROGRAM in it] with one `ls`, for which the subshell makes way: this
# is what a start costs. Sets lf_dir, free of symbolic links that could be changed under us.
# GNU ls would count in the user's BLOCK_SIZE, and write dates in the user's TIME_STYLE.
# shellcheck disable=SC2086 # words are wanted
lf_look() {
    lf_out=$(
        exec 2>/dev/null
        command cd -P "$1/run" && command pwd -P && echo // &&
            export LC_ALL=C LS_BLOCK_SIZE=1 TIME_STYLE=locale && exec ls -dln . .. ${2:+"$2"}
    ) && lf_dir=${lf_out%%?//*} && lf_trusted $(($# + 1)) ${lf_out#*//?}
}

# Is our program in BASE/run?
lf_find() {
    [ -x "$1/run/$lf_name" ] && lf_look "$1" "$lf_name"
}

# Can it be put there, and does it run there?
lf_make() {
    (umask 077 && command mkdir -p "$1/run") 2>/dev/null && lf_look "$1" && {
        lf_unpack "$lf_dir/$lf_name" || {
            lf_clean
            false
        }
    }
}

lf_program() {
    command dd if="$lf_self" bs=65536 skip="$lf_skip" count="$lf_count" 2>/dev/null |
        GZIP='' command gzip -dc 2>/dev/null
}

# The SHA-256 of stdin, somewhere in the output; nothing where there is no tool for it.
lf_sum() {
    for lf_tool in sha256sum 'shasum -a 256' sha256 'openssl dgst -sha256'; do
        if command -v "${lf_tool%% *}" >/dev/null; then
            # shellcheck disable=SC2086 # words are wanted
            command $lf_tool
            break
        fi
    done 2>/dev/null
}

# A directory in the program's place would swallow it, and so would a symbolic link to one.
# The trial run finds file systems that let nothing be executed. The middle of 1980 is in 1980
# in every time zone.
lf_unpack() {
    [ ! -h "$1" ] || command rm -f "$1"
    [ ! -d "$1" ] && lf_new "$1.$$" && lf_program >"$lf_tmp" &&
        [ "$(($(command wc -c <"$lf_tmp") + 0))" = "$lf_size" ] &&
        case $(lf_sum <"$lf_tmp") in *"$lf_name"* | '') ;; *) false ;; esac &&
        command chmod 700 "$lf_tmp" && lf_try "$lf_tmp" &&
        command touch -t 198007010000 "$lf_tmp" && command mv -f "$lf_tmp" "$1"
}

# Sets lf_tmp to a new file; the second way is for systems without mktemp.
lf_new() {
    lf_tmp=$(umask 077 && command mktemp "$1.XXXXXX" 2>/dev/null) || {
        lf_tmp=$1.0
        (umask 077 && set -C && : >"$lf_tmp") 2>/dev/null
    }
}

# In a subshell, for a failed exec may end the shell. 126 is: not allowed here.
lf_try() {
    ("$1" --probe) </dev/null >/dev/null 2>&1 || {
        lf_status=$?
        false
    }
}

# By pattern, for a signal may come before the name is known.
lf_clean() { command rm -f "$lf_dir/$lf_name.$$."*; }

# Calls $1 with one place after the other until it succeeds. Who says PYLLAMAFILE_CACHE means
# it. A HOME that is not ours is the user's that sudo came from: not to be littered. Where
# everybody may write, somebody else's link could lead to what we trust.
lf_each() {
    if [ "${PYLLAMAFILE_CACHE:+x}" ]; then
        case $PYLLAMAFILE_CACHE in
        /*) "$1" "$PYLLAMAFILE_CACHE" ;;
        *) "$1" "$PWD/$PYLLAMAFILE_CACHE" ;;
        esac
    elif lf_at "$1" "${XDG_CACHE_HOME:+$XDG_CACHE_HOME/pyllamafile}"; then
        :
    elif [ -O "${HOME-}" ] 2>/dev/null && lf_at "$1" "$HOME/.cache/pyllamafile"; then
        :
    else
        lf_uid=${lf_uid:-$(command id -u)}
        for lf_base in "${TMPDIR:-/var/tmp}" /var/tmp /tmp; do
            lf_real=$(command cd -P "$lf_base" 2>/dev/null && command pwd -P) &&
                [ ! -h "$lf_base/pyllamafile-$lf_uid" ] &&
                [ ! -h "$lf_base/pyllamafile-$lf_uid/run" ] &&
                lf_at "$1" "$lf_base/pyllamafile-$lf_uid" &&
                [ "$lf_dir" = "$lf_real/pyllamafile-$lf_uid/run" ] && break
        done
    fi
}

# A relative path would mean another place tomorrow.
lf_at() {
    case $2 in
    /*) "$1" "$2" ;;
    *) false ;;
    esac
}

if ! lf_each lf_find; then
    for lf_sig in HUP INT TERM; do
        # shellcheck disable=SC2064 # lf_sig as it is now
        trap "lf_clean; trap - $lf_sig; kill -$lf_sig $$" "$lf_sig"
    done
    if ! lf_each lf_make; then
        case $(lf_program | lf_sum) in
        *"$lf_name"* | '') ;;
        *) lf_die 'cannot unpack the program: the file is damaged or incomplete, or gzip is missing' ;;
        esac
        [ "${lf_status:-126}" = 126 ] ||
            lf_die "the program for $lf_host does not run on this machine (it ended with status $lf_status)"
        lf_die "cannot unpack the program${PYLLAMAFILE_CACHE:+ to $PYLLAMAFILE_CACHE}: set PYLLAMAFILE_CACHE to a directory with room for it that only you can write to, and where programs may run"
    fi
    trap - HUP INT TERM
fi

PATH=$lf_path
exec "$lf_dir/$lf_name" --llamafile "$lf_self" "$@"
