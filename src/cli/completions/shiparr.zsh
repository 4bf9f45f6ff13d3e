#compdef shiparr
# Completion of the command line of shiparr for zsh; the program itself says what fits.

_shiparr() {
    local -a lines
    lines=(${(f)"$(shiparr complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)"})
    case $lines[1] in
        :files) _files ;;
        :folders) _files -/ ;;
        *)
            lines=("${(@)lines/$'\t'/:}")
            _describe -t words 'shiparr' lines
            ;;
    esac
}

# Loaded by name from a folder of $fpath, or read as a whole.
if [[ $funcstack[1] == _shiparr ]]; then
    _shiparr "$@"
else
    compdef _shiparr shiparr
fi
