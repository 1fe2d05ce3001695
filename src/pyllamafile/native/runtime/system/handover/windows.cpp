#include "system/handover/system.h"

#include "manifest.h"
#include "system/wide.h"

#include <hash/hash.h>
#include <stdexcept>

namespace fs = std::filesystem;

namespace {

// The command line as it was typed, behind another program and the file that it is for. How
// Windows tells the program's name from the rest: learn.microsoft.com, "Parsing C Command-Line
// Arguments". No path on Windows has a quotation mark in it.
std::wstring command_for(const fs::path & program, const started & here) {
    const wchar_t * rest = GetCommandLineW();
    for (bool quoted = false; *rest != L'\0' && (quoted || (*rest != L' ' && *rest != L'\t'));
         rest++) {
        quoted = quoted != (*rest == L'"');
    }
    const std::wstring file = L" --llamafile \"" + wide(here.llamafile.path) + L"\"";
    return L"\"" + program.wstring() + L"\"" + (here.told ? L"" : file) + rest;
}

// The child has the same console and hears of Ctrl-C itself; how it ends is the answer.
BOOL WINAPI leave_to_child(DWORD event) {
    return event == CTRL_C_EVENT || event == CTRL_BREAK_EVENT;
}

// Ends the child when this process ends, however it does; but not the browser that it opened.
HANDLE job_of_this_process() {
    const HANDLE job = CreateJobObjectW(nullptr, nullptr);
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits = {};
    limits.BasicLimitInformation.LimitFlags =
        JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | JOB_OBJECT_LIMIT_SILENT_BREAKAWAY_OK;
    SetInformationJobObject(job, JobObjectExtendedLimitInformation, &limits, sizeof(limits));
    return job;
}

} // namespace

const char * const END_OF_PROGRAM = ".exe";

bool is_emulated() {
    using query = BOOL(WINAPI *)(HANDLE, USHORT *, USHORT *); // since Windows 10 1709
    const auto ask =
        (query)(void *)GetProcAddress(GetModuleHandleW(L"kernel32.dll"), "IsWow64Process2");
    USHORT process = 0;
    USHORT machine = 0;
    return ask != nullptr && ask(GetCurrentProcess(), &process, &machine) &&
           machine == IMAGE_FILE_MACHINE_ARM64;
}

std::vector<fs::path> usual_places(variables set) {
    const fs::path local = set("LOCALAPPDATA");
    return local.empty() ? std::vector<fs::path>() : std::vector<fs::path>{ local / "pyllamafile" };
}

std::vector<fs::path> shared_places(variables) {
    return {};
}

fs::path trusted_run(const fs::path & place) {
    return place / "run";
}

bool make_program(const fs::path &) {
    return true;
}

// The usual place is the user's alone. One that somebody chose may be open to others, and then its
// content alone says what it is.
bool is_program(const fs::path & path, const std::string & sha256, uint64_t size) {
    std::error_code error;
    if (fs::file_size(path, error) != size || error) {
        return false;
    }
    if (_wgetenv(L"PYLLAMAFILE_CACHE") == nullptr) {
        return true;
    }
    const std::string bytes = read_bytes(path.u8string(), 0, size);
    return hash_sha256_hex(bytes.data(), bytes.size()) == sha256;
}

std::string no_gpu_program_because() {
    return "";
}

std::string why_no_program_starts(const std::system_error &) {
    return "";
}

bool lets_none_run(const std::system_error &) {
    return true;
}

signals_wait::signals_wait() {}

signals_wait::~signals_wait() {}

int become(const fs::path & program, const started & here) {
    STARTUPINFOW start = {};
    start.cb = sizeof(start);
    start.dwFlags = STARTF_USESTDHANDLES;
    start.hStdInput = GetStdHandle(STD_INPUT_HANDLE);
    start.hStdOutput = GetStdHandle(STD_OUTPUT_HANDLE);
    start.hStdError = GetStdHandle(STD_ERROR_HANDLE);
    PROCESS_INFORMATION child = {};
    std::wstring command = command_for(program, here);
    if (!CreateProcessW(program.c_str(), command.data(), nullptr, nullptr, TRUE, CREATE_SUSPENDED,
                        nullptr, nullptr, &start, &child)) {
        throw std::runtime_error("can't be started");
    }
    SetConsoleCtrlHandler(leave_to_child, TRUE);
    AssignProcessToJobObject(job_of_this_process(), child.hProcess);
    ResumeThread(child.hThread);
    WaitForSingleObject(child.hProcess, INFINITE);
    DWORD code = 1;
    GetExitCodeProcess(child.hProcess, &code);
    return (int)code;
}
