// Text as Windows has it, UTF-16, and as everybody else has it.
#pragma once

#include <windows.h>

#include <string>

inline std::string utf8(const std::wstring & text) {
    const int size = WideCharToMultiByte(CP_UTF8, 0, text.data(), (int)text.size(), nullptr, 0,
                                         nullptr, nullptr);
    std::string out(size, '\0');
    WideCharToMultiByte(CP_UTF8, 0, text.data(), (int)text.size(), out.data(), size, nullptr,
                        nullptr);
    return out;
}

inline std::wstring wide(const std::string & text) {
    const int size = MultiByteToWideChar(CP_UTF8, 0, text.data(), (int)text.size(), nullptr, 0);
    std::wstring out(size, L'\0');
    MultiByteToWideChar(CP_UTF8, 0, text.data(), (int)text.size(), out.data(), size);
    return out;
}

inline std::wstring own_path_wide() {
    std::wstring path(MAX_PATH, L'\0');
    for (DWORD length; (length = GetModuleFileNameW(nullptr, path.data(), (DWORD)path.size())) > 0;
         path.resize(2 * path.size())) {
        if (length < path.size()) {
            path.resize(length);
            return path;
        }
    }
    return {};
}
