#include "drivers.h"

#include "gpu/backend.h"
#include "system/identity.h"
#include "system/wide.h"

#include <algorithm>
#include <memory>

namespace fs = std::filesystem;

namespace {

// What drivers are installed with, a numbered key for each: those of displays, and what comes along
// with drivers.
const wchar_t * const CLASSES[] = {
    L"SYSTEM\\CurrentControlSet\\Control\\Class\\{4d36e968-e325-11ce-bfc1-08002be10318}",
    L"SYSTEM\\CurrentControlSet\\Control\\Class\\{5c4c3332-344d-483c-8739-259e934c9cc8}",
};
const wchar_t MANIFESTS[] = L"VulkanDriverName"; // a value in such a key
const wchar_t * const FACTS[] = { L"DriverVersion", L"MatchingDeviceId" };
// In the older way the name of a value is a manifest's path, and 0 is in it.
const wchar_t OLDER_WAY[] = L"SOFTWARE\\Khronos\\Vulkan\\Drivers";
const wchar_t DISPLAYS[] = L"HARDWARE\\DEVICEMAP\\VIDEO"; // of the devices that there are now
const size_t LONGEST = 1 << 14; // letters of a name ("Registry Element Size Limits")

using names = std::vector<std::wstring>;

struct closing {
    using pointer = HKEY;
    void operator()(HKEY it) const {
        RegCloseKey(it);
    }
};

// A key of the registry. Where there is none, or it may not be read, it has nothing in it.
class key {
  public:
    key(HKEY above, const std::wstring & path) {
        HKEY found = nullptr;
        if (RegOpenKeyExW(above, path.c_str(), 0, KEY_READ, &found) == ERROR_SUCCESS) {
            handle.reset(found);
        }
    }

    names keys() const {
        return all([this](DWORD index, wchar_t * name, DWORD * length) {
            return RegEnumKeyExW(handle.get(), index, name, length, nullptr, nullptr, nullptr,
                                 nullptr);
        });
    }

    names values() const {
        return all([this](DWORD index, wchar_t * name, DWORD * length) {
            return RegEnumValueW(handle.get(), index, name, length, nullptr, nullptr, nullptr,
                                 nullptr);
        });
    }

    // The texts of a value, which has one or several.
    names texts(const std::wstring & value) const {
        const DWORD kinds = RRF_RT_REG_SZ | RRF_RT_REG_MULTI_SZ;
        DWORD size = 0;
        if (read(value, kinds, nullptr, &size) != ERROR_SUCCESS) {
            return {};
        }
        std::wstring text(size / sizeof(wchar_t) + 1, L'\0');
        names out;
        if (read(value, kinds, text.data(), &size) == ERROR_SUCCESS) {
            for (size_t at = 0; text[at] != L'\0'; at += out.back().size() + 1) {
                out.emplace_back(text.c_str() + at);
            }
        }
        return out;
    }

    bool is_zero(const std::wstring & value) const {
        DWORD number = 1, size = sizeof(number);
        return read(value, RRF_RT_REG_DWORD, &number, &size) == ERROR_SUCCESS && number == 0;
    }

    HKEY get() const {
        return handle.get();
    }

  private:
    template <typename function> names all(const function & next) const {
        names out;
        std::wstring name(LONGEST, L'\0');
        for (DWORD index = 0; handle; index++) {
            DWORD length = (DWORD)name.size();
            if (next(index, name.data(), &length) != ERROR_SUCCESS) {
                break;
            }
            out.push_back(name.substr(0, length));
        }
        return out;
    }

    LSTATUS read(const std::wstring & value, DWORD kinds, void * data, DWORD * size) const {
        return handle
                   ? RegGetValueW(handle.get(), nullptr, value.c_str(), kinds, nullptr, data, size)
                   : ERROR_FILE_NOT_FOUND;
    }

    std::unique_ptr<HKEY, closing> handle;
};

// The keys of the drivers that have Vulkan.
std::vector<key> installed() {
    std::vector<key> out;
    for (const wchar_t * path : CLASSES) {
        const key above(HKEY_LOCAL_MACHINE, path);
        for (const std::wstring & number : above.keys()) {
            key each(above.get(), number);
            if (!each.texts(MANIFESTS).empty()) {
                out.push_back(std::move(each));
            }
        }
    }
    return out;
}

} // namespace

const char SEPARATOR = ';';

std::vector<fs::path> usual_manifests() {
    std::vector<fs::path> out;
    for (const key & each : installed()) {
        const names found = each.texts(MANIFESTS);
        out.insert(out.end(), found.begin(), found.end());
    }
    for (const HKEY whose : { HKEY_LOCAL_MACHINE, HKEY_CURRENT_USER }) {
        const key registered(whose, OLDER_WAY);
        for (const std::wstring & path : registered.values()) {
            if (registered.is_zero(path)) {
                out.push_back(path);
            }
        }
    }
    return out;
}

std::vector<fs::path> library_folders() {
    wchar_t folder[MAX_PATH];
    return GetSystemDirectoryW(folder, MAX_PATH) != 0 ? std::vector<fs::path>{ folder }
                                                      : std::vector<fs::path>();
}

std::string system_of_drivers() {
    std::string out = system_name(); // with the number of the build, which its own drivers are of
    for (const key & each : installed()) {
        for (const wchar_t * fact : FACTS) {
            for (const std::wstring & text : each.texts(fact)) {
                out += "\n" + utf8(text);
            }
        }
    }
    const key displays(HKEY_LOCAL_MACHINE, DISPLAYS);
    names devices;
    for (const std::wstring & each : displays.values()) {
        const names found = displays.texts(each);
        devices.insert(devices.end(), found.begin(), found.end());
    }
    std::sort(devices.begin(), devices.end()); // their numbers change from start to start
    for (const std::wstring & each : devices) {
        out += "\n" + utf8(each);
    }
    return out + "\n";
}

// Nothing here keeps a process from reading what its user may read.
void name_gpu_drivers(named & names) {
    names.gpu = true;
}
