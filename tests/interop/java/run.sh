#!/bin/sh
# Runs Kv.java with the Java client jetcd, from the versions pinned by pom.xml.
set -u

here=$(cd "$(dirname "$0")" && pwd)
folder=$INTEROP_CACHE/java
if ! command -v java >/dev/null || ! command -v mvn >/dev/null; then
    echo 'skipped: no java or no mvn'
    exit 77
fi
mkdir -p "$folder"
if ! cmp -s "$here/pom.xml" "$folder/pom.xml"; then
    if ! mvn -q -B -Dstyle.color=never -f "$here/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:build-classpath \
        -Dmdep.outputFile="$folder/classpath"; then
        echo 'skipped: cannot get the packages of pom.xml'
        exit 77
    fi
    cp "$here/pom.xml" "$folder/pom.xml"
fi
exec java -cp "$(cat "$folder/classpath")" "$here/Kv.java" "$1"
