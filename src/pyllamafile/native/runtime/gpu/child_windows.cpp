#include "gpu/child.h"

#include "system/wide.h"

#include <algorithm>
#include <memory>
#include <system_error>

namespace {

struct closing {
    using pointer = HANDLE;
    void operator()(HANDLE it) const {
        CloseHandle(it);
    }
};
using handle = std::unique_ptr<HANDLE, closing>;

// learn.microsoft.com, "Parsing C Command-Line Arguments": backslashes count double in front of a
// quotation mark.
std::wstring quoted(const std::string & word) {
    std::wstring out = L"\"";
    size_t backslashes = 0;
    for (const wchar_t c : wide(word)) {
        out.append(c == L'"' ? backslashes + 1 : 0, L'\\');
        backslashes = c == L'\\' ? backslashes + 1 : 0;
        out += c;
    }
    return out.append(backslashes, L'\\') + L"\"";
}

// Where it is not in the table, and the first two bits are set, it was no exit status of a program.
std::string name_of_crash(DWORD code) {
    const std::pair<DWORD, const char *> known[] = {
        { 0xC0000005, "an access violation" }, { 0xC000001D, "an unknown instruction" },
        { 0xC0000094, "a division by zero" },  { 0xC00000FD, "a stack overflow" },
        { 0xC0000135, "a library missing" },   { 0xC0000142, "a library that can't be started" },
        { 0xC0000374, "a damaged heap" },      { 0xC0000409, "abort()" },
        { 0x80000003, "a breakpoint" },
    };
    for (const auto & each : known) {
        if (each.first == code) {
            return each.second;
        }
    }
    char text[32];
    snprintf(text, sizeof(text), "status 0x%08lX", code);
    return code >> 30 == 3 ? text : "";
}

std::system_error failed(DWORD error) {
    return std::system_error((int)error, std::system_category());
}

void read_what_is_there(HANDLE from, std::string & into) {
    char buffer[1024];
    DWORD n = 0;
    for (size_t left = MOST_AT_ONCE;
         left > 0 && PeekNamedPipe(from, nullptr, 0, nullptr, &n, nullptr) && n > 0;
         left -= std::min(left, (size_t)n)) {
        if (!ReadFile(from, buffer, std::min(n, (DWORD)sizeof(buffer)), &n, nullptr)) {
            break;
        }
        into.append(buffer, into.size() < MOST_SAID ? n : 0);
    }
}

// Ends the child when this process ends, however it does.
handle job_with(HANDLE process) {
    handle job(CreateJobObjectW(nullptr, nullptr));
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits = {};
    limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
    SetInformationJobObject(job.get(), JobObjectExtendedLimitInformation, &limits, sizeof(limits));
    AssignProcessToJobObject(job.get(), process);
    return job;
}

} // namespace

child_end run_for(int seconds, const std::vector<std::string> & words) {
    std::wstring command;
    for (const std::string & word : words) {
        command += (command.empty() ? L"" : L" ") + quoted(word);
    }
    SECURITY_ATTRIBUTES inherited = { sizeof(inherited), nullptr, TRUE };
    HANDLE reads = nullptr, writes = nullptr;
    if (!CreatePipe(&reads, &writes, &inherited, 1 << 16)) {
        throw failed(GetLastError());
    }
    const handle from(reads);
    handle to(writes);
    SetHandleInformation(reads, HANDLE_FLAG_INHERIT, 0);
    const handle nothing(CreateFileW(L"NUL", GENERIC_READ | GENERIC_WRITE,
                                     FILE_SHARE_READ | FILE_SHARE_WRITE, &inherited, OPEN_EXISTING,
                                     0, nullptr));
    STARTUPINFOW start = {};
    start.cb = sizeof(start);
    start.dwFlags = STARTF_USESTDHANDLES;
    start.hStdInput = nothing.get();
    start.hStdOutput = to.get();
    start.hStdError = nothing.get();
    PROCESS_INFORMATION child = {};
    // It inherits this: a crash shows nobody a window, and ends at once.
    const UINT mode = SetErrorMode(SEM_FAILCRITICALERRORS | SEM_NOGPFAULTERRORBOX);
    const bool started =
        CreateProcessW(wide(words[0]).c_str(), command.data(), nullptr, nullptr, TRUE,
                       CREATE_SUSPENDED | CREATE_NO_WINDOW, nullptr, nullptr, &start, &child);
    const DWORD error = GetLastError();
    SetErrorMode(mode);
    if (!started) {
        throw failed(error);
    }
    const handle process(child.hProcess), thread(child.hThread);
    const handle job = job_with(process.get());
    to.reset();
    ResumeThread(thread.get());
    child_end out;
    const ULONGLONG deadline = GetTickCount64() + 1000ULL * (ULONGLONG)seconds;
    // Not until the pipe's end: whoever the driver has started may have it, too.
    while (WaitForSingleObject(process.get(), 20) == WAIT_TIMEOUT) {
        read_what_is_there(from.get(), out.said);
        if (GetTickCount64() > deadline) {
            out.late = true;
            TerminateProcess(process.get(), 1);
            WaitForSingleObject(process.get(), 2000);
            break;
        }
    }
    read_what_is_there(from.get(), out.said);
    DWORD code = 1;
    GetExitCodeProcess(process.get(), &code);
    if (!out.late) {
        out.crash = name_of_crash(code);
        out.code = (int)code;
    }
    return out;
}

void end_with_parent() {} // its job does
