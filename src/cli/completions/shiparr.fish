# Completion of the command line of shiparr for fish; the program itself says what fits.

function __shiparr_complete
    set -l words (commandline -opc)
    set -e words[1]
    set -l current (commandline -ct)
    for candidate in (shiparr complete -- $words "$current" 2>/dev/null)
        switch $candidate
            case :files
                __fish_complete_path "$current"
            case :folders
                __fish_complete_directories "$current"
            case '*'
                echo $candidate
        end
    end
end

complete -c shiparr -f -a '(__shiparr_complete)'
