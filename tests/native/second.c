/* Stands for a program for GPUs: says which process it is and what it was called with, and passes on
   what it reads. With --probe it ends as it is compiled to. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--probe") == 0) {
        return PROBE;
    }
    printf("%d\n", (int)getpid());
    for (int i = 0; i < argc; i++) {
        printf("%s\n", argv[i]);
    }
    for (int c; (c = getchar()) != EOF;) {
        putchar(c);
    }
    return argc;
}
