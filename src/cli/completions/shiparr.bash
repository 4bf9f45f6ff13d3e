# shellcheck shell=bash
#
# Completion of the command line of shiparr for bash; the program itself says what fits.

_shiparr() {
    local word is_glued=''
    local -a words=()
    # Bash splits at `=` and `:` too.
    for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        if [[ ${#words[@]} -gt 0 && ( -n $is_glued || $word == [=:]* ) ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
        [[ $word == *[=:] ]] && is_glued=yes || is_glued=
    done
    mapfile -t COMPREPLY < <(shiparr complete -- "${words[@]}" 2>/dev/null)
    case ${COMPREPLY[0]-} in
        :files)
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -f -- "$2")
            ;;
        :folders)
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -d -- "$2")
            ;;
        *)
            COMPREPLY=("${COMPREPLY[@]%%$'\t'*}")
            ;;
    esac
}

complete -F _shiparr shiparr
