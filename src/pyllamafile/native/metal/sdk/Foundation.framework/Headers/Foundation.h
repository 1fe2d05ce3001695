// What llama.cpp's Metal sources name of Foundation, and nothing else. zig has the Objective-C
// runtime's own headers, NSObject among them. Written from names, types and values;
// tests/native/test_metal.py holds each of them against other people's lists.
#pragma once

#import <objc/NSObject.h>

#include <Block.h>
#include <dispatch/dispatch.h>
#include <inttypes.h>
#include <mach/mach.h>
#include <os/availability.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

@class NSArray<ObjectType>;
@class NSError;

typedef NSUInteger NSStringEncoding;
enum : NSStringEncoding { NSUTF8StringEncoding = 4 };

typedef struct _NSRange {
    NSUInteger location;
    NSUInteger length;
} NSRange;

static inline NSRange NSMakeRange(NSUInteger location, NSUInteger length) {
    return (NSRange){ location, length };
}

// `for (x in y)` fills this one.
typedef struct {
    unsigned long state;
    id __unsafe_unretained * itemsPtr;
    unsigned long * mutationsPtr;
    unsigned long extra[5];
} NSFastEnumerationState;

@protocol NSFastEnumeration
- (NSUInteger)countByEnumeratingWithState:(NSFastEnumerationState *)state
                                  objects:(id __unsafe_unretained[])buffer
                                    count:(NSUInteger)len;
@end

@protocol NSCopying
@end

@protocol NSLocking
- (void)lock;
- (void)unlock;
@end

@interface NSLock : NSObject <NSLocking>
@end

@interface NSNumber : NSObject
+ (NSNumber *)numberWithInt:(int)value;
@property(readonly) int intValue;
@end

@interface NSCharacterSet : NSObject
@property(readonly, class, copy) NSCharacterSet * whitespaceCharacterSet;
@end

@interface NSString : NSObject <NSCopying>
+ (instancetype)stringWithUTF8String:(const char *)nullTerminatedCString;
+ (instancetype)stringWithCString:(const char *)cString encoding:(NSStringEncoding)enc;
+ (instancetype)stringWithFormat:(NSString *)format, ...;
+ (instancetype)stringWithContentsOfFile:(NSString *)path
                                encoding:(NSStringEncoding)enc
                                   error:(NSError **)error;
+ (NSString *)pathWithComponents:(NSArray<NSString *> *)components;
- (instancetype)initWithBytes:(const void *)bytes
                       length:(NSUInteger)len
                     encoding:(NSStringEncoding)encoding;
- (BOOL)containsString:(NSString *)str;
- (BOOL)isEqualToString:(NSString *)aString;
- (NSArray<NSString *> *)componentsSeparatedByString:(NSString *)separator;
- (NSString *)substringToIndex:(NSUInteger)to;
- (NSString *)stringByAppendingPathComponent:(NSString *)str;
- (NSString *)stringByAppendingPathExtension:(NSString *)str;
- (NSString *)stringByTrimmingCharactersInSet:(NSCharacterSet *)set;
@property(readonly) NSUInteger length;
@property(readonly) const char * UTF8String;
@property(readonly, copy) NSString * stringByDeletingLastPathComponent;
@property(readonly, copy) NSString * stringByStandardizingPath;
@end

@interface NSMutableString : NSString
- (void)appendString:(NSString *)aString;
@end

@interface NSArray<ObjectType> : NSObject <NSFastEnumeration>
+ (instancetype)arrayWithObjects:(const ObjectType[])objects count:(NSUInteger)cnt;
- (ObjectType)objectAtIndexedSubscript:(NSUInteger)idx;
@property(readonly) NSUInteger count;
@end

@interface NSMutableArray<ObjectType> : NSArray <ObjectType>
- (void)addObject:(ObjectType)anObject;
- (void)removeObject:(ObjectType)anObject;
- (void)removeAllObjects;
@end

@interface NSDictionary<KeyType, ObjectType> : NSObject
+ (instancetype)dictionary;
+ (instancetype)dictionaryWithObjects:(const ObjectType[])objects
                              forKeys:(const id<NSCopying>[])keys
                                count:(NSUInteger)cnt;
- (ObjectType)objectForKeyedSubscript:(KeyType)key;
@end

@interface NSMutableDictionary<KeyType, ObjectType> : NSDictionary <KeyType, ObjectType>
- (void)setObject:(ObjectType)anObject forKey:(id<NSCopying>)aKey;
- (void)setObject:(ObjectType)obj forKeyedSubscript:(id<NSCopying>)key;
@end

@interface NSSet<ObjectType> : NSObject
+ (instancetype)set;
- (BOOL)containsObject:(ObjectType)anObject;
@end

@interface NSMutableSet<ObjectType> : NSSet <ObjectType>
- (void)addObject:(ObjectType)object;
@end

@interface NSError : NSObject
+ (instancetype)errorWithDomain:(NSString *)domain
                           code:(NSInteger)code
                       userInfo:(NSDictionary *)dict;
@property(readonly, copy) NSString * localizedDescription;
@end

@interface NSURL : NSObject
+ (NSURL *)fileURLWithPath:(NSString *)path;
@end

@interface NSScanner : NSObject
+ (instancetype)scannerWithString:(NSString *)string;
- (BOOL)scanString:(NSString *)string intoString:(NSString **)result;
- (BOOL)scanUpToString:(NSString *)string intoString:(NSString **)result;
@property(copy) NSCharacterSet * charactersToBeSkipped;
@end

@interface NSFileManager : NSObject
@property(class, readonly, strong) NSFileManager * defaultManager;
- (BOOL)isReadableFileAtPath:(NSString *)path;
- (NSDictionary<NSString *, id> *)attributesOfItemAtPath:(NSString *)path error:(NSError **)error;
- (NSString *)destinationOfSymbolicLinkAtPath:(NSString *)path error:(NSError **)error;
@end

@interface NSProcessInfo : NSObject
@property(class, readonly, strong) NSProcessInfo * processInfo;
@property(readonly, copy) NSArray<NSString *> * arguments;
@end

@interface NSBundle : NSObject
- (NSString *)pathForResource:(NSString *)name ofType:(NSString *)ext;
@end

extern NSString * const NSFileType;
extern NSString * const NSFileTypeSymbolicLink;
extern NSString * const NSLocalizedDescriptionKey;
