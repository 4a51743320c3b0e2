-- CreateEnum
CREATE TYPE "MessageAuthor" AS ENUM ('user', 'agent');

-- CreateTable
CREATE TABLE "messages" (
    "id" BIGSERIAL NOT NULL,
    "mission_id" BIGINT NOT NULL,
    "author" "MessageAuthor" NOT NULL,
    "body" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "messages_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "messages_mission_id_id_idx" ON "messages"("mission_id", "id");

-- AddForeignKey
ALTER TABLE "messages" ADD CONSTRAINT "messages_mission_id_fkey"
    FOREIGN KEY ("mission_id") REFERENCES "missions"("id") ON DELETE CASCADE ON UPDATE CASCADE;
