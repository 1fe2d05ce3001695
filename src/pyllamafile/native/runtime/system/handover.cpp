#include "system/handover.h"

#include "manifest.h"
#include "system/wide.h"

#include <bcrypt.h>
#include <cstdlib>
#include <cstring>
#include <filesystem>

// stb_image.h, which llama.cpp links in to read PNG files
extern "C" int stbi_zlib_decode_noheader_buffer(char * out, int out_size, const char * in,
                                                int in_size);

namespace {

namespace fs = std::filesystem;

// Ten bytes, a comment ended by NUL, deflated data, checksum and length (FORMAT.md, section 3).
// Empty where that is not as many bytes as the caller knows it to be.
std::string gunzip(const std::string & member, size_t size) {
    const size_t start = member.find('\0', 10) + 1;
    if (member.compare(0, 4, "\x1f\x8b\x08\x10", 4) != 0 || start == 0 ||
        member.size() < start + 8) {
        return {};
    }
    std::string out(size, '\0');
    const int inflated = stbi_zlib_decode_noheader_buffer(
        out.data(), (int)size, member.data() + start, (int)(member.size() - start - 8));
    return inflated == (int)size ? out : "";
}

std::string sha256(const std::string & bytes) {
    unsigned char digest[32] = {};
    BCryptHash(BCRYPT_SHA256_ALG_HANDLE, nullptr, 0, (PUCHAR)bytes.data(), (ULONG)bytes.size(),
               digest, sizeof(digest));
    std::string out;
    for (const unsigned char byte : digest) {
        char hex[3];
        snprintf(hex, sizeof(hex), "%02x", byte);
        out += hex;
    }
    return out;
}

std::string unpack(const container & llamafile, const packed_program & program) {
    const std::string member = read_bytes(llamafile, program.offset, program.packed_size);
    const std::string out = gunzip(member, program.size);
    return sha256(out) == program.sha256 ? out : "";
}

// Nobody ever sees half of it, however many start at once.
bool write_file(const fs::path & path, const std::string & bytes) {
    const fs::path draft = path.wstring() + L"." + std::to_wstring(GetCurrentProcessId());
    FILE * file = _wfopen(draft.c_str(), L"wb");
    const bool complete =
        file != nullptr && fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
    const bool written = file != nullptr && fclose(file) == 0 && complete;
    if (written && MoveFileExW(draft.c_str(), path.c_str(), MOVEFILE_REPLACE_EXISTING)) {
        return true;
    }
    DeleteFileW(draft.c_str());
    return false;
}

// Where the program is kept; empty if there is no place.
fs::path cached(const packed_program & program) {
    const wchar_t * given = _wgetenv(L"PYLLAMAFILE_CACHE");
    const wchar_t * local = _wgetenv(L"LOCALAPPDATA");
    fs::path base;
    if (given != nullptr && given[0] != L'\0') {
        base = given;
    } else if (local != nullptr && local[0] != L'\0') {
        base = fs::path(local) / "pyllamafile";
    } else {
        return {};
    }
    std::error_code error;
    fs::create_directories(base / "run", error);
    return error ? fs::path() : base / "run" / (program.sha256 + ".exe");
}

// The command line as it was typed, behind another program and the file that it is for. How
// Windows tells the program's name from the rest: learn.microsoft.com, "Parsing C Command-Line
// Arguments". No path on Windows has a quotation mark in it.
std::wstring command_for(const fs::path & program, const std::string & llamafile) {
    const wchar_t * rest = GetCommandLineW();
    for (bool quoted = false; *rest != L'\0' && (quoted || (*rest != L' ' && *rest != L'\t'));
         rest++) {
        quoted = quoted != (*rest == L'"');
    }
    return L"\"" + program.wstring() + L"\" --llamafile \"" + wide(llamafile) + L"\"" + rest;
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

std::optional<int> run(const fs::path & program, std::wstring command) {
    STARTUPINFOW start = {};
    start.cb = sizeof(start);
    start.dwFlags = STARTF_USESTDHANDLES;
    start.hStdInput = GetStdHandle(STD_INPUT_HANDLE);
    start.hStdOutput = GetStdHandle(STD_OUTPUT_HANDLE);
    start.hStdError = GetStdHandle(STD_ERROR_HANDLE);
    PROCESS_INFORMATION child = {};
    if (!CreateProcessW(program.c_str(), command.data(), nullptr, nullptr, TRUE, CREATE_SUSPENDED,
                        nullptr, nullptr, &start, &child)) {
        return {};
    }
    SetConsoleCtrlHandler(leave_to_child, TRUE);
    AssignProcessToJobObject(job_of_this_process(), child.hProcess);
    ResumeThread(child.hThread);
    WaitForSingleObject(child.hProcess, INFINITE);
    DWORD code = 1;
    GetExitCodeProcess(child.hProcess, &code);
    return (int)code;
}

} // namespace

bool is_emulated() {
    using query = BOOL(WINAPI *)(HANDLE, USHORT *, USHORT *); // since Windows 10 1709
    const auto ask =
        (query)(void *)GetProcAddress(GetModuleHandleW(L"kernel32.dll"), "IsWow64Process2");
    USHORT process = 0;
    USHORT machine = 0;
    return ask != nullptr && ask(GetCurrentProcess(), &process, &machine) &&
           machine == IMAGE_FILE_MACHINE_ARM64;
}

std::optional<int> hand_over(const container & llamafile, const std::string & target) {
    const auto program = find_program(llamafile, target);
    const fs::path path = program ? cached(*program) : fs::path();
    if (path.empty()) {
        return {};
    }
    // Its content was checked when it was unpacked; only the user could have changed it since.
    std::error_code error;
    if (fs::file_size(path, error) != program->size || error) {
        const std::string bytes = unpack(llamafile, *program);
        if (bytes.empty() || !write_file(path, bytes)) {
            fprintf(stderr, "warning: %s: its program for %s %s; this one goes on, more slowly\n",
                    llamafile.path.c_str(), target.c_str(),
                    bytes.empty() ? "is damaged" : "can't be written to the cache");
            return {};
        }
    }
    return run(path, command_for(path, llamafile.path));
}
