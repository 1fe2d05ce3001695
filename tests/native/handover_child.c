// Stands for the arm64 program: says where it is, what it was called with and what it reads. With
// --probe it ends at once.
#include <stdio.h>
#include <windows.h>

int wmain(int argc, wchar_t **argv) {
    if (argc == 2 && wcscmp(argv[1], L"--probe") == 0) {
        return 0;
    }
    wchar_t self[1024];
    GetModuleFileNameW(0, self, 1024);
    printf("%ls\n", self);
    for (int i = 1; i < argc; i++) {
        char text[1024];
        WideCharToMultiByte(CP_UTF8, 0, argv[i], -1, text, sizeof(text), 0, 0);
        printf("%s\n", text);
    }
    fflush(stdout);
    for (int c; (c = getchar()) != EOF;) {
        putchar(c);
    }
    return argc;
}
