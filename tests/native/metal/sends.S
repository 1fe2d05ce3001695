// What a compiler for macOS calls and names, on Linux on amd64, for bridge.m to answer.
    .text

// Finds the method, and jumps there with the arguments as they came. A message to nil is nothing.
    .globl objc_msgSend
    .type objc_msgSend, @function
objc_msgSend:
    .cfi_startproc
    test %rdi, %rdi
    je 1f
    push %rbp
    .cfi_def_cfa_offset 16
    mov %rsp, %rbp
    sub $128, %rsp
    mov %rdi, -8(%rbp)
    mov %rsi, -16(%rbp)
    mov %rdx, -24(%rbp)
    mov %rcx, -32(%rbp)
    mov %r8, -40(%rbp)
    mov %r9, -48(%rbp)
    mov %rax, -56(%rbp)
    movups %xmm0, -80(%rbp)
    movups %xmm1, -96(%rbp)
    call bridge_lookup
    mov %rax, %r11
    mov -8(%rbp), %rdi
    mov -16(%rbp), %rsi
    mov -24(%rbp), %rdx
    mov -32(%rbp), %rcx
    mov -40(%rbp), %r8
    mov -48(%rbp), %r9
    mov -56(%rbp), %rax
    movups -80(%rbp), %xmm0
    movups -96(%rbp), %xmm1
    leave
    .cfi_def_cfa_offset 8
    jmp *%r11
1:  xor %eax, %eax
    xor %edx, %edx
    pxor %xmm0, %xmm0
    ret
    .cfi_endproc
    .size objc_msgSend, . - objc_msgSend

// Apple's compiler refers to classes by address. Here the address is that of the class's name, and
// bridge_start() puts the class there.
    .section .rodata
    .globl __CFConstantStringClassReference
__CFConstantStringClassReference:
    .quad 0
.macro class name
    .globl OBJC_CLASS_$_\name
OBJC_CLASS_$_\name:
    .asciz "\name"
.endm
    class NSLock
    class NSMutableArray
    class NSMutableDictionary
    class NSNumber
    class NSString
    class NSURL
    class MTLCaptureDescriptor
    class MTLCaptureManager
    class MTLCompileOptions
    class MTLFunctionConstantValues
    class MTLResidencySetDescriptor

    .section .note.GNU-stack, "", @progbits
