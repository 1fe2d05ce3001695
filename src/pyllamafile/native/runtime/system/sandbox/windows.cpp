// Windows: policies of the process (SetProcessMitigationPolicy), a job object, and a low integrity
// level, with which nothing of the user's can be written to. None of them knows the network, and
// none keeps a process from reading what its user may read.

#include "system/sandbox/system.h"

// clang-format off
#include <windows.h>
#include <aclapi.h>
#include <sddl.h>
// clang-format on

#include "system/wide.h"

namespace {

bool set_policy(PROCESS_MITIGATION_POLICY policy, DWORD flags) {
    return SetProcessMitigationPolicy(policy, &flags, sizeof(flags)) != FALSE;
}

// The bits of the structures of these names, PROCESS_MITIGATION_…_POLICY.
const DWORD PROHIBIT_DYNAMIC_CODE = 1;
const DWORD DISABLE_EXTENSION_POINTS = 1;
const DWORD NO_REMOTE_IMAGES = 1, NO_LOW_LABEL_IMAGES = 2, PREFER_SYSTEM32_IMAGES = 4;
const DWORD NO_CHILD_PROCESS_CREATION = 1;

const DWORD DESKTOP = JOB_OBJECT_UILIMIT_DESKTOP | JOB_OBJECT_UILIMIT_DISPLAYSETTINGS |
                      JOB_OBJECT_UILIMIT_GLOBALATOMS | JOB_OBJECT_UILIMIT_HANDLES |
                      JOB_OBJECT_UILIMIT_SYSTEMPARAMETERS;

// No window, no clipboard, no settings of the desktop; and no second process. A driver looks at
// windows and displays of the desktop that it draws on.
bool enter_job(bool alone, bool driver) {
    const HANDLE job = CreateJobObjectW(nullptr, nullptr);
    if (job == nullptr) {
        return false;
    }
    JOBOBJECT_BASIC_UI_RESTRICTIONS ui = {};
    ui.UIRestrictionsClass = JOB_OBJECT_UILIMIT_EXITWINDOWS | JOB_OBJECT_UILIMIT_READCLIPBOARD |
                             JOB_OBJECT_UILIMIT_WRITECLIPBOARD | (driver ? 0 : DESKTOP);
    JOBOBJECT_BASIC_LIMIT_INFORMATION limits = {};
    limits.LimitFlags = alone ? JOB_OBJECT_LIMIT_ACTIVE_PROCESS : 0;
    limits.ActiveProcessLimit = alone ? 1 : 0;
    const bool set =
        SetInformationJobObject(job, JobObjectBasicUIRestrictions, &ui, sizeof(ui)) &&
        SetInformationJobObject(job, JobObjectBasicLimitInformation, &limits, sizeof(limits)) &&
        AssignProcessToJobObject(job, GetCurrentProcess());
    CloseHandle(job); // the process keeps it
    return set;
}

bool lower_integrity() {
    HANDLE token = nullptr;
    PSID low = nullptr;
    bool done = false;
    if (OpenProcessToken(GetCurrentProcess(), TOKEN_ADJUST_DEFAULT | TOKEN_QUERY, &token) &&
        ConvertStringSidToSidW(L"S-1-16-4096", &low)) { // SECURITY_MANDATORY_LOW_RID
        TOKEN_MANDATORY_LABEL label = {};
        label.Label.Attributes = SE_GROUP_INTEGRITY;
        label.Label.Sid = low;
        done = SetTokenInformation(token, TokenIntegrityLevel, &label,
                                   sizeof(label) + GetLengthSid(low)) != FALSE;
    }
    if (low != nullptr) {
        LocalFree(low);
    }
    if (token != nullptr) {
        CloseHandle(token);
    }
    return done;
}

void close_up(const permissions & may, const named & names, std::string & by) {
    const bool alone = !may.starts;
    by += enter_job(alone, has_driver(may, names)) ? ", a job object" : "";
    if (alone && set_policy(ProcessChildProcessPolicy, NO_CHILD_PROCESS_CREATION)) {
        by += ", no child processes";
    }
    if (alone && may.writes == files::NAMED && names.writes.empty() && lower_integrity()) {
        by += ", low integrity";
    }
}

} // namespace

void open_to_low_integrity(const std::string & folder) {
    PSECURITY_DESCRIPTOR descriptor = nullptr;
    PACL labels = nullptr;
    BOOL present = FALSE, by_default = FALSE;
    // for the folder and all that will be in it (SDDL: ML is a mandatory label, LW the low level)
    if (!ConvertStringSecurityDescriptorToSecurityDescriptorW(
            L"S:(ML;OICI;NW;;;LW)", SDDL_REVISION_1, &descriptor, nullptr)) {
        return;
    }
    std::wstring path = wide(folder);
    if (GetSecurityDescriptorSacl(descriptor, &present, &labels, &by_default) && present) {
        SetNamedSecurityInfoW(path.data(), SE_FILE_OBJECT, LABEL_SECURITY_INFORMATION, nullptr,
                              nullptr, nullptr, labels);
    }
    LocalFree(descriptor);
}

std::string confine(const permissions & may, const named & names) {
    std::string by = has_driver(may, names) ? "dynamic code (with the driver of a GPU)"
                     : set_policy(ProcessDynamicCodePolicy, PROHIBIT_DYNAMIC_CODE)
                         ? "no dynamic code"
                         : "dynamic code";
    set_policy(ProcessExtensionPointDisablePolicy, DISABLE_EXTENSION_POINTS);
    set_policy(ProcessImageLoadPolicy,
               NO_REMOTE_IMAGES | NO_LOW_LABEL_IMAGES | PREFER_SYSTEM32_IMAGES);
    if (may.net == network::LISTENS) {
        return by + ", more when it is ready"; // the browser is opened before that
    }
    close_up(may, names, by);
    return by;
}

void confine_further(const named & names) {
    std::string by;
    close_up(permissions_of(duty::SERVES), names, by);
}

bool sandbox_confines_files() {
    return true;
}
